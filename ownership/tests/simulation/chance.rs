//! What is left to chance: random numbers from a seed, or a script that says which of the messages have another fate than
//! the rest.

use crate::world::{MS, S};

/// `SplitMix64`: small, and good enough to choose schedules.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to below `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low).max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.next().is_multiple_of(n)
    }

    pub fn index(&mut self, below: usize) -> usize {
        self.between(0, below as u64) as usize
    }
}

/// How likely it is that something happens to a message: once in so many; 0: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// It takes up to 1.5 s.
    pub slow: u64,
    /// It takes up to 20 s, so that it has its effect long after whoever sent it gave it up.
    pub late: u64,
    /// It is lost, or its answer is.
    pub lost: u64,
    /// It arrives a second time.
    pub twice: u64,
    /// A write to a volume takes up to 8 s.
    pub writes: u64,
    /// A list is of a while ago: it comes from a cache of the API server.
    pub stale: u64,
}

impl Weather {
    pub const CALM: Self = Self { slow: 100, late: 0, lost: 0, twice: 0, writes: 0, stale: 0 };
    pub const FAIR: Self = Self { slow: 100, late: 0, lost: 1000, twice: 1000, writes: 0, stale: 0 };
    pub const FOUL: Self = Self { slow: 50, late: 100, lost: 300, twice: 200, writes: 0, stale: 0 };
}

/// What becomes of a message: how long it is under way, and how long its answer; none: lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    pub there: Option<u64>,
    pub back: Option<u64>,
    pub again: Option<u64>,
}

/// Messages with another fate than the rest, by number, in rising order, and which.
pub type Deviations = Vec<(u32, u8)>;

/// Fates that a script can give to a message.
pub const OPTIONS: [Fate; 4] = [
    Fate { there: Some(900 * MS), back: Some(10 * MS), again: None },
    Fate { there: Some(LATEST), back: Some(10 * MS), again: None },
    Fate { there: None, back: None, again: None },
    Fate { there: Some(10 * MS), back: None, again: None },
];

/// No option delays a message for longer.
pub const LATEST: u64 = 2600 * MS;

/// A script counts messages from an instant on.
#[derive(Clone)]
pub struct Script {
    pub deviations: Deviations,
    pub from: u64,
    pub until: u64,
    /// How many messages were sent in that time.
    pub count: u32,
}

#[derive(Clone)]
pub struct Chance {
    rng: Rng,
    pub weather: Weather,
    pub script: Option<Script>,
}

impl Chance {
    pub fn random(seed: u64) -> Self {
        Self { rng: Rng::new(seed), weather: Weather::FAIR, script: None }
    }

    pub fn scripted(script: Script) -> Self {
        Self { rng: Rng::new(0), weather: Weather::CALM, script: Some(script) }
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.rng.next()
    }

    /// From `low` to below `high`; a script takes the lowest.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        if self.script.is_some() { low } else { self.rng.between(low, high) }
    }

    /// A script says no.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.script.is_none() && self.rng.one_in(n)
    }

    /// How long a message or a notice is under way that is not lost.
    pub fn delay(&mut self) -> u64 {
        let Weather { slow, late, .. } = self.weather;
        match (self.one_in(slow), self.one_in(late)) {
            (_, true) => self.between(S, 20 * S),
            (true, _) => self.between(50 * MS, 1500 * MS),
            _ => self.between(MS, 30 * MS),
        }
    }

    /// The fate of the next message. `moot`: it does not arrive, whatever its fate, so that a script need not choose one.
    pub fn fate(&mut self, now: u64, write: bool, moot: bool) -> Fate {
        if let Some(script) = &mut self.script {
            let plain = Fate { there: Some(10 * MS), back: Some(10 * MS), again: None };
            if moot || now < script.from || now >= script.until {
                return plain;
            }
            let number = script.count;
            script.count += 1;
            let chosen = script.deviations.iter().find(|(at, _)| *at == number);
            return chosen.map_or(plain, |(_, option)| OPTIONS[usize::from(*option)]);
        }
        let Weather { lost, twice, .. } = self.weather;
        let held = write && self.one_in(self.weather.writes);
        let there = (!self.one_in(lost)).then(|| if held { self.rng.between(S, 8 * S) } else { self.delay() });
        let back = (!self.one_in(lost)).then(|| self.delay());
        let again = self.one_in(twice).then(|| self.delay() + self.rng.between(0, 5 * S));
        Fate { there, back, again }
    }
}
