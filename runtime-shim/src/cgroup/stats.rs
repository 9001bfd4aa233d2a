//! Resource use of a container, as containerd's metrics messages. Collected here because the shim crate's collector
//! gives no CPU time and no memory limit on v1, from which the kubelet computes nonsense.

use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};

use super::Group;
use crate::error::{Error, Result};

/// Nanoseconds of one tick of `cpuacct.stat` (`USER_HZ` is 100 on every architecture that we run on).
const TICK: u64 = 10_000_000;

/// Reads all counters. A file that is missing (controller off) counts as zero.
pub fn collect(group: &Group) -> Result<Any> {
    let (url, bytes) = if group.layout().is_unified() {
        let dir = group.unified().unwrap_or_default();
        ("io.containerd.cgroups.v2.Metrics", unified(&dir).write_to_bytes())
    } else {
        ("io.containerd.cgroups.v1.Metrics", legacy(group).write_to_bytes())
    };
    let value = bytes.map_err(|e| Error::Failed(format!("The metrics cannot be encoded: {e}.")))?;
    Ok(Any { type_url: url.into(), value, ..Any::default() })
}

/// A file of one number; `max` is the largest there is.
fn number(dir: &Path, name: &str) -> u64 {
    parse_number(&fs::read_to_string(dir.join(name)).unwrap_or_default())
}

fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

/// A file of lines `key value`.
struct Table(String);

impl Table {
    fn read(dir: &Path, name: &str) -> Self {
        Self(fs::read_to_string(dir.join(name)).unwrap_or_default())
    }

    fn get(&self, key: &str) -> u64 {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(key).and_then(|rest| rest.strip_prefix(' ')))
            .map_or(0, parse_number)
    }
}

fn legacy(group: &Group) -> v1::Metrics {
    let dir = |controller: &str| group.v1(controller).unwrap_or_default();
    let (cpuacct, cpu, pids, memory) = (dir("cpuacct"), dir("cpu"), dir("pids"), dir("memory"));
    let mut metrics = v1::Metrics::new();

    let ticks = Table::read(&cpuacct, "cpuacct.stat");
    let mut usage = v1::CPUUsage::new();
    usage.total = number(&cpuacct, "cpuacct.usage");
    usage.user = ticks.get("user") * TICK;
    usage.kernel = ticks.get("system") * TICK;
    usage.per_cpu = fs::read_to_string(cpuacct.join("cpuacct.usage_percpu"))
        .unwrap_or_default()
        .split_whitespace()
        .map(parse_number)
        .collect();
    let throttled = Table::read(&cpu, "cpu.stat");
    let mut throttle = v1::Throttle::new();
    throttle.periods = throttled.get("nr_periods");
    throttle.throttled_periods = throttled.get("nr_throttled");
    throttle.throttled_time = throttled.get("throttled_time");
    let mut cpu = v1::CPUStat::new();
    cpu.usage = MessageField::some(usage);
    cpu.throttling = MessageField::some(throttle);
    metrics.cpu = MessageField::some(cpu);

    let mut tasks = v1::PidsStat::new();
    tasks.current = number(&pids, "pids.current");
    // containerd's convention: no limit is zero.
    tasks.limit = Some(number(&pids, "pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    metrics.pids = MessageField::some(tasks);

    metrics.memory = MessageField::some(legacy_memory(&memory));
    let oom = Table::read(&memory, "memory.oom_control");
    let mut control = v1::MemoryOomControl::new();
    control.oom_kill_disable = oom.get("oom_kill_disable");
    control.under_oom = oom.get("under_oom");
    control.oom_kill = oom.get("oom_kill");
    metrics.memory_oom_control = MessageField::some(control);
    metrics
}

fn legacy_memory(dir: &Path) -> v1::MemoryStat {
    let table = Table::read(dir, "memory.stat");
    let mut memory = v1::MemoryStat::new();
    memory.cache = table.get("cache");
    memory.rss = table.get("rss");
    memory.rss_huge = table.get("rss_huge");
    memory.mapped_file = table.get("mapped_file");
    memory.dirty = table.get("dirty");
    memory.writeback = table.get("writeback");
    memory.pg_pg_in = table.get("pgpgin");
    memory.pg_pg_out = table.get("pgpgout");
    memory.pg_fault = table.get("pgfault");
    memory.pg_maj_fault = table.get("pgmajfault");
    memory.inactive_anon = table.get("inactive_anon");
    memory.active_anon = table.get("active_anon");
    memory.inactive_file = table.get("inactive_file");
    memory.active_file = table.get("active_file");
    memory.unevictable = table.get("unevictable");
    memory.hierarchical_memory_limit = table.get("hierarchical_memory_limit");
    memory.hierarchical_swap_limit = table.get("hierarchical_memsw_limit");
    memory.total_cache = table.get("total_cache");
    memory.total_rss = table.get("total_rss");
    memory.total_rss_huge = table.get("total_rss_huge");
    memory.total_mapped_file = table.get("total_mapped_file");
    memory.total_dirty = table.get("total_dirty");
    memory.total_writeback = table.get("total_writeback");
    memory.total_pg_pg_in = table.get("total_pgpgin");
    memory.total_pg_pg_out = table.get("total_pgpgout");
    memory.total_pg_fault = table.get("total_pgfault");
    memory.total_pg_maj_fault = table.get("total_pgmajfault");
    memory.total_inactive_anon = table.get("total_inactive_anon");
    memory.total_active_anon = table.get("total_active_anon");
    memory.total_inactive_file = table.get("total_inactive_file");
    memory.total_active_file = table.get("total_active_file");
    memory.total_unevictable = table.get("total_unevictable");
    memory.usage = MessageField::some(legacy_entry(dir, "memory"));
    memory.swap = MessageField::some(legacy_entry(dir, "memory.memsw"));
    memory.kernel = MessageField::some(legacy_entry(dir, "memory.kmem"));
    memory.kernel_tcp = MessageField::some(legacy_entry(dir, "memory.kmem.tcp"));
    memory
}

fn legacy_entry(dir: &Path, prefix: &str) -> v1::MemoryEntry {
    let mut entry = v1::MemoryEntry::new();
    entry.limit = number(dir, &format!("{prefix}.limit_in_bytes"));
    entry.usage = number(dir, &format!("{prefix}.usage_in_bytes"));
    entry.max = number(dir, &format!("{prefix}.max_usage_in_bytes"));
    entry.failcnt = number(dir, &format!("{prefix}.failcnt"));
    entry
}

fn unified(dir: &Path) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    let table = Table::read(dir, "cpu.stat");
    let mut cpu = v2::CPUStat::new();
    cpu.usage_usec = table.get("usage_usec");
    cpu.user_usec = table.get("user_usec");
    cpu.system_usec = table.get("system_usec");
    cpu.nr_periods = table.get("nr_periods");
    cpu.nr_throttled = table.get("nr_throttled");
    cpu.throttled_usec = table.get("throttled_usec");
    metrics.cpu = MessageField::some(cpu);

    let mut pids = v2::PidsStat::new();
    pids.current = number(dir, "pids.current");
    pids.limit = Some(number(dir, "pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    metrics.pids = MessageField::some(pids);

    metrics.memory = MessageField::some(unified_memory(dir));
    let table = Table::read(dir, "memory.events");
    let mut events = v2::MemoryEvents::new();
    events.low = table.get("low");
    events.high = table.get("high");
    events.max = table.get("max");
    events.oom = table.get("oom");
    events.oom_kill = table.get("oom_kill");
    metrics.memory_events = MessageField::some(events);

    let mut io = v2::IOStat::new();
    io.usage = fs::read_to_string(dir.join("io.stat")).unwrap_or_default().lines().filter_map(io_entry).collect();
    metrics.io = MessageField::some(io);
    metrics
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`
fn io_entry(line: &str) -> Option<v2::IOEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let mut entry = v2::IOEntry::new();
    entry.major = major.parse().ok()?;
    entry.minor = minor.parse().ok()?;
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let value = parse_number(value);
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

fn unified_memory(dir: &Path) -> v2::MemoryStat {
    let table = Table::read(dir, "memory.stat");
    let mut memory = v2::MemoryStat::new();
    memory.anon = table.get("anon");
    memory.file = table.get("file");
    memory.kernel_stack = table.get("kernel_stack");
    memory.slab = table.get("slab");
    memory.sock = table.get("sock");
    memory.shmem = table.get("shmem");
    memory.file_mapped = table.get("file_mapped");
    memory.file_dirty = table.get("file_dirty");
    memory.file_writeback = table.get("file_writeback");
    memory.anon_thp = table.get("anon_thp");
    memory.inactive_anon = table.get("inactive_anon");
    memory.active_anon = table.get("active_anon");
    memory.inactive_file = table.get("inactive_file");
    memory.active_file = table.get("active_file");
    memory.unevictable = table.get("unevictable");
    memory.slab_reclaimable = table.get("slab_reclaimable");
    memory.slab_unreclaimable = table.get("slab_unreclaimable");
    memory.pgfault = table.get("pgfault");
    memory.pgmajfault = table.get("pgmajfault");
    memory.usage = number(dir, "memory.current");
    memory.usage_limit = number(dir, "memory.max");
    memory.max_usage = number(dir, "memory.peak");
    memory.swap_usage = number(dir, "memory.swap.current");
    memory.swap_limit = number(dir, "memory.swap.max");
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        let table = Table("usage_usec 12\nuser_usec 7\nuser 3\n".into());
        assert_eq!((table.get("user"), table.get("user_usec"), table.get("absent")), (3, 7, 0));
        assert_eq!((parse_number("max\n"), parse_number("5\n"), parse_number("")), (u64::MAX, 5, 0));
        let entry = io_entry("259:3 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0").unwrap();
        assert_eq!((entry.major, entry.minor, entry.wbytes), (259, 3, 2));
    }
}
