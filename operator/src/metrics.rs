//! What the operator tells Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use vivarium_api::v1alpha1::environment::LastFailover;
use vivarium_api::v1alpha1::{ConditionStatus, VirtualEnvironmentStatus, condition};

/// Upper bounds of the time of a reconciliation, in seconds: a look into caches is below the first, one with many API
/// calls in the middle, one that meets time-outs in the last.
const BUCKETS: [f64; 8] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The same for the phases of a failover.
const PHASES: [f64; 8] = [0.5, 1.0, 2.0, 4.0, 6.0, 10.0, 20.0, 60.0];

/// All metrics. Cheap to share; every field counts by itself.
pub struct Metrics {
    registry: Registry,
    reconciled: Counter,
    failed: Family<Vec<(&'static str, &'static str)>, Counter>,
    actions: Family<Vec<(&'static str, &'static str)>, Counter>,
    status_writes: Counter,
    seconds: Histogram,
    leader: Gauge<i64, std::sync::atomic::AtomicI64>,
    failover: Family<Vec<(&'static str, &'static str)>, Histogram>,
    proofs: Family<Vec<(&'static str, &'static str)>, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vivarium_operator");
        let reconciled = Counter::<u64, AtomicU64>::default();
        let (failed, actions, proofs) = (Family::default(), Family::default(), Family::default());
        let status_writes = Counter::<u64, AtomicU64>::default();
        let seconds = Histogram::new(BUCKETS);
        let leader = Gauge::default();
        let failover = Family::<_, Histogram>::new_with_constructor(|| Histogram::new(PHASES));
        // Known before the first failover: a rule that asks for a series that is not there would be silent.
        for phase in ["fence", "restore", "start", "boot"] {
            drop(failover.get_or_create(&vec![("phase", phase)]));
        }
        let what = "Time of a phase of a failover: until nothing could run on the dead node, until the volume was on the other one, until init began, until it answered";
        registry.register_with_unit("failover", what, Unit::Seconds, failover.clone());
        registry.register("reconciliations", "Environments and volumes that were looked at", reconciled.clone());
        registry.register("failures", "Reconciliations that failed, by what failed", failed.clone());
        registry.register("actions", "Writes to the API server beside the status, by kind", actions.clone());
        registry.register("proofs", "Restores of environments on trial, by outcome", proofs.clone());
        registry.register("status_writes", "Writes of an environment's status", status_writes.clone());
        registry.register_with_unit("reconciliation", "Time of a reconciliation", Unit::Seconds, seconds.clone());
        registry.register("leader", "1 while this replica acts", leader.clone());
        Self { registry, reconciled, failed, actions, status_writes, seconds, leader, failover, proofs }
    }
}

impl Metrics {
    /// Notes a reconciliation; `error` is the kind of error that it ended with.
    pub fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        self.reconciled.inc();
        self.seconds.observe(took.as_secs_f64());
        if let Some(kind) = error {
            self.failed.get_or_create(&vec![("error", kind)]).inc();
        }
    }

    /// Notes an action.
    pub fn acted(&self, kind: &'static str) {
        self.actions.get_or_create(&vec![("action", kind)]).inc();
    }

    /// Notes that a status was written.
    pub fn wrote_status(&self) {
        self.status_writes.inc();
    }

    /// Notes whether this replica acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Notes a failover that is complete.
    pub fn failed_over(&self, failover: &LastFailover) {
        let instants = [
            ("fence", Some(&failover.detected), failover.fenced.as_ref()),
            ("restore", failover.fenced.as_ref(), failover.restored.as_ref()),
            ("start", failover.restored.as_ref(), failover.started.as_ref()),
            ("boot", failover.started.as_ref(), failover.ready.as_ref()),
        ];
        for (phase, from, to) in instants {
            if let (Some(from), Some(to)) = (from, to) {
                let seconds = to.0.duration_since(from.0).as_secs_f64().max(0.0);
                self.failover.get_or_create(&vec![("phase", phase)]).observe(seconds);
            }
        }
    }

    /// Notes a restore on trial, as far as it changed what the status says.
    pub fn proved(&self, before: Option<&VirtualEnvironmentStatus>, after: &VirtualEnvironmentStatus) {
        let time = |status: &VirtualEnvironmentStatus| status.durability.clone()?.proven;
        let failed = |status: &VirtualEnvironmentStatus| {
            condition::find(&status.conditions, "Proven").is_some_and(|c| c.status == ConditionStatus::False)
        };
        if before.and_then(time) != time(after) {
            self.proofs.get_or_create(&vec![("outcome", "proven")]).inc();
        }
        if failed(after) && !before.is_some_and(failed) {
            self.proofs.get_or_create(&vec![("outcome", "failed")]).inc();
        }
    }

    /// All metrics in the `OpenMetrics` text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_of_a_failover_is_measured_once() {
        let at = |tenths: i64| {
            let time = jiff::Timestamp::from_millisecond(tenths * 100).unwrap();
            k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(time)
        };
        let metrics = Metrics::default();
        metrics.failed_over(&LastFailover {
            epoch: 4,
            from_node: "n1".into(),
            to_node: Some("n2".into()),
            detected: at(0),
            fenced: Some(at(51)),
            restored: Some(at(56)),
            // What was never seen is in no phase.
            started: None,
            ready: Some(at(90)),
        });
        let text = metrics.text().unwrap();
        for line in [
            "vivarium_operator_failover_seconds_sum{phase=\"fence\"} 5.1",
            "vivarium_operator_failover_seconds_count{phase=\"fence\"} 1",
            "vivarium_operator_failover_seconds_bucket{le=\"4.0\",phase=\"fence\"} 0",
            "vivarium_operator_failover_seconds_bucket{le=\"6.0\",phase=\"fence\"} 1",
            "vivarium_operator_failover_seconds_sum{phase=\"restore\"} 0.5",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        for phase in ["start", "boot"] {
            assert!(text.contains(&format!("failover_seconds_count{{phase=\"{phase}\"}} 0\n")), "{text}");
        }
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(20), Some("read"));
        metrics.acted("CreatePod");
        metrics.leads(true);
        let text = metrics.text().unwrap();
        for line in [
            "vivarium_operator_reconciliations_total 1",
            "vivarium_operator_failures_total{error=\"read\"} 1",
            "vivarium_operator_actions_total{action=\"CreatePod\"} 1",
            "vivarium_operator_leader 1",
            "vivarium_operator_reconciliation_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
