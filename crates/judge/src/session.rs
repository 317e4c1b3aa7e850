//! Asking a judge about pairs of answers, several at a time, with what it said before kept.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;

use fpo_files::{Fingerprint, journal::Journal};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::answers::Pair;
use crate::endpoint::{Endpoint, EndpointError, Usage};
use crate::prompt::{self, Wording};
use crate::verdict::{self, Order, Verdict};

/// How the judge is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Judge {
    /// The judge's name at the endpoint.
    pub model: String,
    /// How it is asked.
    pub wording: Wording,
    /// Sampling temperature.
    pub temperature: f64,
    /// Tokens of a reply, at most.
    pub max_tokens: u32,
    /// Whether probabilities are asked for.
    pub logprobs: bool,
    /// Fields put into each request over its own ones; null takes a field out.
    pub body: Map<String, Value>,
}

/// Most endpoints give at most 20 alternatives, some only 5, which has room for both letters.
const TOP_LOGPROBS: u32 = 5;
/// Replies asked for until there is a verdict.
const REPLIES: u32 = 2;
/// How much of a reply is kept.
const LONGEST_REPLY: usize = 4000;
/// Rejected requests without any verdict after which it stops: the settings are wrong then, not the questions.
const REJECTED: usize = 5;

impl Judge {
    /// The body of a request.
    pub fn request(&self, messages: &[Value]) -> Value {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), json!(messages));
        body.insert("temperature".to_owned(), json!(self.temperature));
        body.insert("max_tokens".to_owned(), json!(self.max_tokens));
        if self.logprobs {
            body.insert("logprobs".to_owned(), json!(true));
            body.insert("top_logprobs".to_owned(), json!(TOP_LOGPROBS));
        }
        for (name, value) in &self.body {
            match value {
                Value::Null => body.remove(name),
                _ => body.insert(name.clone(), value.clone()),
            };
        }
        Value::Object(body)
    }

    /// All that a verdict depends on besides the texts.
    pub fn settings(&self, url: &str, baseline: &str, model: &str) -> Fingerprint {
        Fingerprint::default()
            .with("judge", &self.model)
            .with("endpoint", url)
            .with("wording", self.wording.hash())
            .with("temperature", self.temperature)
            .with("max tokens", self.max_tokens)
            .with("logprobs", self.logprobs)
            .with("body", Value::Object(self.body.clone()))
            .with("baseline", baseline)
            .with("model", model)
    }
}

/// A question in one order.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// The question and its answers.
    pub pair: &'a Pair,
    /// Whose answer comes first.
    pub order: Order,
}

impl Comparison<'_> {
    /// What the judge is asked.
    ///
    /// # Errors
    /// A wording that fails on these texts.
    pub fn messages(&self, judge: &Judge) -> Result<Vec<Value>, Error> {
        judge.wording.messages(self.pair, self.order)
    }
}

/// All comparisons, both orders of a question after one another.
pub fn comparisons(pairs: &[Pair]) -> impl Iterator<Item = Comparison<'_>> {
    pairs.iter().flat_map(|pair| Order::ALL.map(|order| Comparison { pair, order }))
}

/// A request that the endpoint refuses. Nothing is kept of it: the next run asks it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The question.
    pub question: String,
    /// What the endpoint says.
    pub message: String,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Comparisons with a verdict or without one, those of earlier runs included.
    pub done: usize,
    /// Comparisons in all.
    pub total: usize,
    /// Tokens of all replies.
    pub usage: Usage,
}

/// What can be done meanwhile.
pub struct Control<'a> {
    /// Requests at the same time.
    pub parallel: usize,
    /// Whether it should stop.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Told after each verdict.
    pub progress: &'a mut dyn FnMut(Progress),
}

/// Verdicts for all pairs, those of earlier runs among them.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Verdicts of these pairs.
    pub verdicts: Vec<Verdict>,
    /// Requests that the endpoint refused.
    pub rejections: Vec<Rejection>,
}

/// Asks for every verdict that isn't there yet. Each is on disk before this knows of it.
///
/// # Errors
/// An endpoint that doesn't answer, or a disk that takes nothing; what was received before is kept.
pub fn run(
    endpoint: &Endpoint,
    judge: &Judge,
    pairs: &[Pair],
    journal: &mut Journal,
    kept: Vec<Verdict>,
    control: Control<'_>,
) -> Result<Outcome, Error> {
    let verdicts = known(journal.path(), pairs, kept)?;
    let total = pairs.len() * Order::ALL.len();
    let answered: HashSet<(&str, Order)> =
        verdicts.iter().map(|verdict| (verdict.question.as_str(), verdict.order)).collect();
    // A wording that fails does so before anything is paid for.
    let open: Vec<(Comparison<'_>, Vec<Value>)> = comparisons(pairs)
        .filter(|asked| !answered.contains(&(asked.pair.question.as_str(), asked.order)))
        .map(|asked| Ok((asked, asked.messages(judge)?)))
        .collect::<Result<_, Error>>()?;
    let mut spent = usage(&verdicts);
    let mut outcome = Outcome { verdicts: verdicts.clone(), rejections: Vec::new() };
    let (next, halted) = (AtomicUsize::new(0), AtomicBool::new(false));
    let stop = || halted.load(SeqCst) || (control.stop)();
    let (sender, receiver) = mpsc::channel();
    let result = std::thread::scope(|scope| {
        for _ in 0..control.parallel.clamp(1, open.len().max(1)) {
            let (sender, open, next, stop, halted) = (sender.clone(), &open, &next, &stop, &halted);
            scope.spawn(move || {
                while let (false, Some((comparison, messages))) =
                    (stop(), open.get(next.fetch_add(1, SeqCst)))
                {
                    let answer = ask(endpoint, judge, *comparison, messages.clone(), stop);
                    // What ends the session ends it before anybody asks for more.
                    if matches!(&answer, Err(error) if !matches!(error, EndpointError::Rejected { .. })) {
                        halted.store(true, SeqCst);
                    }
                    if sender.send((*comparison, answer)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        // After the first failure, what is still on its way is waited for and kept.
        let mut failure: Option<Error> = None;
        for (comparison, answer) in receiver {
            let failed: Option<Error> = match answer {
                Ok(verdict) => match journal.add(&[&verdict]) {
                    Ok(()) => {
                        spent = sum(Some(spent), verdict.usage).unwrap_or_default();
                        outcome.verdicts.push(verdict);
                        let done = outcome.verdicts.len();
                        (control.progress)(Progress { done, total, usage: spent });
                        None
                    }
                    Err(error) => Some(error.into()),
                },
                Err(error @ EndpointError::Rejected { .. }) => {
                    let question = comparison.pair.question.clone();
                    outcome.rejections.push(Rejection { question, message: error.to_string() });
                    let wrong = outcome.verdicts.is_empty()
                        && outcome.rejections.len() >= REJECTED.min(total);
                    wrong.then(|| error.into())
                }
                Err(EndpointError::Interrupted) => None,
                Err(error) => Some(error.into()),
            };
            if let Some(error) = failed {
                halted.store(true, SeqCst);
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    });
    result?;
    match (control.stop)() && outcome.verdicts.len() + outcome.rejections.len() < total {
        true => Err(Error::Interrupted),
        false => Ok(outcome),
    }
}

/// A verdict, asked for again with a reminder where the first reply is none.
fn ask(
    endpoint: &Endpoint,
    judge: &Judge,
    comparison: Comparison<'_>,
    mut messages: Vec<Value>,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Verdict, EndpointError> {
    let mut reply = endpoint.ask(&judge.request(&messages), stop)?;
    let (mut replies, mut spent) = (1, reply.usage);
    let mut found = verdict::read(&reply);
    while found.is_err() && replies < REPLIES {
        messages = prompt::again(messages, &reply);
        // The reply before was paid for, so it is recorded even if there is no other.
        let Ok(next) = endpoint.ask(&judge.request(&messages), stop) else { break };
        reply = next;
        replies += 1;
        spent = sum(spent, reply.usage);
        found = verdict::read(&reply);
    }
    let (first, read_from) = found.ok().unzip();
    let Comparison { pair, order } = comparison;
    let preference = first.map(|first| match order {
        Order::BaselineFirst => 1.0 - first,
        Order::ModelFirst => first,
    });
    Ok(Verdict {
        question: pair.question.clone(),
        order,
        texts: pair.hash(),
        preference,
        read_from,
        no_verdict: found.err(),
        reply: reply.refusal.as_ref().unwrap_or(&reply.text).chars().take(LONGEST_REPLY).collect(),
        replies,
        usage: spent,
        judge: reply.model,
    })
}

fn sum(a: Option<Usage>, b: Option<Usage>) -> Option<Usage> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Usage {
            prompt_tokens: a.prompt_tokens + b.prompt_tokens,
            completion_tokens: a.completion_tokens + b.completion_tokens,
        }),
        (a, b) => a.or(b),
    }
}

/// Tokens of all verdicts that the endpoint counted.
pub fn usage(verdicts: &[Verdict]) -> Usage {
    verdicts.iter().map(|verdict| verdict.usage).fold(None, sum).unwrap_or_default()
}

/// The kept verdicts of these pairs.
///
/// # Errors
/// A verdict on other texts than these.
fn known(path: &Path, pairs: &[Pair], kept: Vec<Verdict>) -> Result<Vec<Verdict>, Error> {
    let texts: HashMap<&str, String> =
        pairs.iter().map(|pair| (pair.question.as_str(), pair.hash())).collect();
    let mut seen = HashSet::new();
    let mut known = Vec::new();
    for verdict in kept {
        let Some(hash) = texts.get(verdict.question.as_str()) else { continue };
        if *hash != verdict.texts {
            let problem = format!(
                "the question {} or an answer to it has changed since it was judged: use the files of then, \
                 or another --out; nothing was changed",
                verdict.question
            );
            return Err(Error::file(path, problem));
        }
        if seen.insert((verdict.question.clone(), verdict.order)) {
            known.push(verdict);
        }
    }
    Ok(known)
}
