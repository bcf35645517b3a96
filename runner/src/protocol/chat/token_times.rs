//! When the tokens of a streamed response arrived, and how many each event held.

use std::time::{Duration, Instant};

/// The times of the tokens of one stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenTimes {
    first: Option<Instant>,
    latest: Option<Instant>,
    /// Seconds from each event with a token to the next one.
    gaps: Vec<f32>,
    /// Events in a row that hold tokens of the same kind.
    runs: Vec<EventRun>,
    /// Until [`Self::share_tokens`]: the number of tokens that the target had reported at each
    /// event, as long as it reports the number in every event. After it: the number of tokens in
    /// each event. Empty if each event holds one.
    tokens: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct EventRun {
    is_reasoning: bool,
    events: u64,
}

/// How many tokens all events of a stream hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventTokens {
    /// Tokens of content and of tool calls. `None` if it is not known, because hidden tokens are counted with them.
    pub(super) answer: Option<u64>,
    /// `None` if it is not known, because the target shows only a part of the reasoning.
    pub(super) reasoning: Option<u64>,
}

impl TokenTimes {
    /// Adds an event with at least one token. `reported` is the number of tokens that the target
    /// has generated up to this event, as it says itself.
    pub(super) fn add(&mut self, at: Instant, is_reasoning: bool, reported: Option<u64>) {
        match self.latest {
            Some(before) => self.gaps.push(at.saturating_duration_since(before).as_secs_f32()),
            None => self.first = Some(at),
        }
        self.latest = Some(at);
        match self.runs.last_mut() {
            Some(run) if run.is_reasoning == is_reasoning => run.events += 1,
            _ => self.runs.push(EventRun { is_reasoning, events: 1 }),
        }
        // Only if every event up to this one had a number.
        if let Some(count) = reported.filter(|_| self.tokens.len() == self.gaps.len()) {
            self.tokens.push(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// When the first event with a token arrived.
    pub(super) const fn first(&self) -> Option<Instant> {
        self.first
    }

    /// Returns true when there is time between tokens.
    pub(crate) const fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    const fn event_count(&self) -> usize {
        match self.first {
            Some(_) => self.gaps.len() + 1,
            None => 0,
        }
    }

    /// Decides how many tokens each event held: what the target reported at each event, otherwise
    /// the `total` of each kind, spread evenly over the events of that kind.
    pub(super) fn share_tokens(&mut self, total: EventTokens) {
        let is_reported = self.tokens.len() == self.event_count()
            && self.tokens.is_sorted()
            && self.tokens.last() > self.tokens.first();
        if is_reported {
            let mut before = 0;
            for count in &mut self.tokens {
                let up_to = *count;
                *count = (up_to - before).max(1);
                before = up_to;
            }
            return;
        }
        self.tokens.clear();
        let events_of = |is_reasoning| {
            let runs = self.runs.iter().filter(|run| run.is_reasoning == is_reasoning);
            runs.map(|run| run.events).sum::<u64>()
        };
        let answer_events = events_of(false);
        let mut answer = EvenSpread::new(total.answer.unwrap_or(answer_events), answer_events);
        let events = events_of(true);
        let mut reasoning = EvenSpread::new(total.reasoning.unwrap_or(events), events);
        if answer.is_one_each() && reasoning.is_one_each() {
            return;
        }
        for run in &self.runs {
            let spread = if run.is_reasoning { &mut reasoning } else { &mut answer };
            self.tokens.extend((0..run.events).map(|_| spread.next_event()));
        }
    }

    /// Calls `on_gap` with the time between two tokens, and how often that time occurs.
    ///
    /// The tokens of an event share the time since the token before, so that the sum of all times
    /// is the time from the first to the last event.
    pub(crate) fn token_gaps(&self, mut on_gap: impl FnMut(Duration, u64)) {
        let mut waited = 0.0;
        for (index, gap) in self.gaps.iter().enumerate() {
            waited += *gap;
            let tokens = self.tokens.get(index + 1).copied().unwrap_or(1);
            if tokens > 0 {
                on_gap(Duration::from_secs_f32(waited / tokens as f32), tokens.into());
                waited = 0.0;
            }
        }
    }

    /// Returns the time from the first to the last event, for each token after the first event.
    /// `None` for a single event.
    pub(crate) fn mean_gap(&self) -> Option<Duration> {
        let took = self.latest?.saturating_duration_since(self.first?);
        let count = if self.tokens.is_empty() {
            self.gaps.len() as u64
        } else {
            self.tokens.iter().skip(1).copied().map(u64::from).sum()
        };
        u32::try_from(count).ok().and_then(|tokens| took.checked_div(tokens))
    }

    /// Returns the share of the tokens that had arrived at `until`, from 0 to 1: by the times of the events, or, if the
    /// response had no event with a token, by the time when it ended.
    pub(crate) fn share_until(&self, until: Instant, ended: Instant) -> f64 {
        let (Some(first), Some(latest)) = (self.first, self.latest) else {
            return f64::from(u8::from(ended <= until));
        };
        if latest <= until {
            return 1.0;
        }
        let mut passed = until.saturating_duration_since(first).as_secs_f32();
        let in_time = |gap: &&f32| {
            passed -= **gap;
            passed >= 0.0
        };
        let arrived = self.gaps.iter().take_while(in_time).count() + usize::from(first <= until);
        arrived as f64 / self.event_count() as f64
    }
}

/// Spreads a number of tokens evenly over events.
struct EvenSpread {
    tokens: u64,
    events: u64,
    event: u64,
}

impl EvenSpread {
    /// Takes one token for each event unless `tokens` clearly says something else: servers count
    /// the mark of the end as a token, and send a token in two pieces now and then.
    const fn new(tokens: u64, events: u64) -> Self {
        let is_more = tokens > events.saturating_add(1);
        let is_less = tokens > 1 && tokens.saturating_mul(3) <= events.saturating_mul(2);
        Self { tokens: if is_more || is_less { tokens } else { events }, events, event: 0 }
    }

    const fn is_one_each(&self) -> bool {
        self.tokens == self.events || self.events == 0
    }

    fn next_event(&mut self) -> u32 {
        let up_to =
            |event: u64| u128::from(event) * u128::from(self.tokens) / u128::from(self.events);
        let tokens = up_to(self.event + 1) - up_to(self.event);
        self.event += 1;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns times of events that are `millis` apart.
    fn times_of(millis: &[u64], is_reasoning: impl Fn(usize) -> bool) -> TokenTimes {
        let mut at = Instant::now();
        let mut times = TokenTimes::default();
        for (index, wait) in millis.iter().enumerate() {
            at += Duration::from_millis(*wait);
            times.add(at, is_reasoning(index), None);
        }
        times
    }

    #[test]
    fn each_kind_shares_its_own_tokens() {
        let mut times = times_of(&[10; 6], |event| event < 2);
        times.share_tokens(EventTokens { answer: Some(4), reasoning: Some(20) });
        assert_eq!(times.tokens, [10, 10, 1, 1, 1, 1]);
        let mut times = times_of(&[10; 6], |event| event < 2);
        times.share_tokens(EventTokens { answer: Some(4), reasoning: None });
        assert_eq!((times.tokens.len(), times.mean_gap()), (0, Some(Duration::from_millis(10))));
    }

    #[test]
    fn several_events_may_hold_one_token() {
        let mut times = times_of(&[10; 8], |_| false);
        times.share_tokens(EventTokens { answer: Some(2), reasoning: None });
        assert_eq!(times.tokens, [0, 0, 0, 1, 0, 0, 0, 1]);
        let mut gaps = Vec::new();
        times.token_gaps(|gap, tokens| gaps.push(((gap.as_secs_f64() * 1e3).round(), tokens)));
        assert_eq!(gaps, [(30.0, 1), (40.0, 1)]);
    }

    proptest! {
        #[test]
        fn gaps_add_up_to_the_whole_time(
            millis in prop::collection::vec(1_u64..500, 1..30),
            answer in prop::option::of(0_u64..150),
            reasoning in prop::option::of(0_u64..150),
            turn in 0_usize..30,
        ) {
            let mut times = times_of(&millis, |event| event < turn);
            times.share_tokens(EventTokens { answer, reasoning });
            let mut sum = 0.0;
            times.token_gaps(|gap, tokens| sum += gap.as_secs_f64() * tokens as f64);
            let whole = millis.iter().skip(1).sum::<u64>() as f64 / 1e3;
            prop_assert!((sum - whole).abs() < 1e-3, "{} s of {} s", sum, whole);
        }
    }
}
