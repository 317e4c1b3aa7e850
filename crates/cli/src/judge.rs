//! `fpo judge`: two models' answers compared by a judge, and the statistics of verdicts.

use std::{
    collections::{BTreeMap, HashSet},
    env,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use fpo_data::atomic;
use fpo_device::interrupt::{Interrupted, Listener, requested};
use fpo_judge::{
    Answers, Control, Endpoint, Error, Gamed, Journal, Key, Missing, Pair, Patience, Questions,
    Summary, Template, Usage, VERDICTS, Verdict, Wording,
    annotations::{self, Annotations},
    estimate::{self, Prices},
    judgments::{self, Scored},
    pairs,
    session::{self, Outcome},
    stats::{Resampling, bradley_terry::Score},
    summary,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    interrupt,
    streams::{self, out, say},
    terminal::reporter,
};

const OPENAI: &str = "https://api.openai.com/v1";

/// Compares two models' answers by a judge model, with win rates as AlpacaEval and scores as Arena-Hard define them
///
/// The judge is any model behind OpenAI's chat protocol. OPENAI_API_KEY holds the key, which is written nowhere; a server of
/// your own may need none. Each pair is asked about in both orders, and each verdict is appended to --out as it comes: the same
/// command goes on where it was stopped and pays for nothing twice. A reply that is no verdict is asked for once more, then
/// counted as none.
///
/// Examples:
///   fpo judge --baseline base.json --answers fpo.json --judge gpt-4o --out verdicts.jsonl --dry-run
///   fpo judge --baseline base.json --answers fpo.json --judge gpt-4o --out verdicts.jsonl --json result.json
///   fpo judge --annotations annotations.json --difficulties df_gamed.csv
///   fpo judge --judgments model_judgment/gpt-4.1/*.jsonl
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Answers are AlpacaEval's array {instruction, output, generator}, Arena-Hard's {uid, model, messages}, MT-Bench's {question_id,
model_id, choices}, or JSON lines of {prompt, response}. A question counts when both orders have a verdict."
)]
pub struct Judge {
    /// Answers of the model to compare with.
    #[arg(long, value_name = "FILE", value_parser = streams::input, required_unless_present_any = ["annotations", "judgments"])]
    baseline: Option<PathBuf>,
    /// Answers of the model that is judged.
    #[arg(long, value_name = "FILE", value_parser = streams::input, required_unless_present_any = ["annotations", "judgments"])]
    answers: Option<PathBuf>,
    /// The benchmark's questions, for answers that don't hold them (MT-Bench, Arena-Hard 0.1).
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    questions: Option<PathBuf>,
    /// Judges the questions that both files answer and leaves out the others.
    #[arg(long)]
    common: bool,
    /// Judges the first N questions; more can be added later.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// AlpacaEval's annotations, instead of a judge: statistics alone, of one or several models.
    #[arg(long, value_name = "FILE", value_parser = streams::input, num_args = 1..,
          conflicts_with_all = ["baseline", "answers", "questions", "judge", "out", "dry_run", "save_annotations"])]
    annotations: Vec<PathBuf>,
    /// Arena-Hard's own judgments (model_judgment/JUDGE/MODEL.jsonl), instead of a judge: scores alone, of one or several models.
    #[arg(long, value_name = "FILE", value_parser = streams::input, num_args = 1..,
          conflicts_with_all = ["baseline", "answers", "questions", "judge", "out", "dry_run", "save_annotations", "annotations",
                                "difficulties"])]
    judgments: Vec<PathBuf>,
    /// The judge's name at the endpoint.
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["annotations", "judgments"])]
    judge: Option<String>,
    /// The endpoint [default: OPENAI_BASE_URL, else https://api.openai.com/v1].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The file of verdicts (JSON lines), begun or continued.
    #[arg(long, value_name = "FILE", value_parser = streams::output,
          required_unless_present_any = ["annotations", "judgments", "dry_run"])]
    out: Option<PathBuf>,
    /// Your own wording: Jinja with {{ instruction }}, {{ a }} and {{ b }}, in messages between <|im_start|>ROLE and <|im_end|> or
    /// as one message. It has to ask for the letter A or B.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    prompt: Option<PathBuf>,
    /// Requests at the same time.
    #[arg(long, default_value = "4", value_name = "N")]
    parallel: NonZeroUsize,
    /// Sampling temperature of the judge.
    #[arg(long, default_value = "0", value_name = "T", value_parser = not_negative)]
    temperature: f64,
    /// Tokens of a reply, at most: a judge that thinks before its letter needs more.
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    max_tokens: u32,
    /// Asks for no probabilities, for endpoints that have none: a verdict is then a whole win.
    #[arg(long)]
    no_logprobs: bool,
    /// Fields put over those of each request, such as '{"max_tokens": null, "max_completion_tokens": 2000}'.
    #[arg(long, value_name = "JSON", value_parser = object)]
    body: Option<Map<String, Value>>,
    /// Tries for a reply, with growing waits between them.
    #[arg(long, default_value = "8", value_name = "N")]
    attempts: NonZeroUsize,
    /// Seconds that a request may take.
    #[arg(long, default_value = "120", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Price of a million tokens sent.
    #[arg(long, value_name = "PRICE", requires = "price_out", value_parser = not_negative)]
    price_in: Option<f64>,
    /// Price of a million tokens received.
    #[arg(long, value_name = "PRICE", requires = "price_in", value_parser = not_negative)]
    price_out: Option<f64>,
    /// Prints the requests (JSON lines) with an estimate of their tokens, and asks nothing.
    #[arg(long)]
    dry_run: bool,
    /// AlpacaEval's df_gamed.csv: controls for the difficulty of its 805 instructions too, as its leaderboard does.
    #[arg(long, value_name = "FILE", value_parser = streams::input)]
    difficulties: Option<PathBuf>,
    /// Resampled sets for the intervals.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    rounds: u32,
    /// Seed of the resampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Writes everything as JSON.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    json: Option<PathBuf>,
    /// Writes the preferences in AlpacaEval's format, for --annotations or its package.
    #[arg(long, value_name = "FILE", value_parser = streams::output)]
    save_annotations: Option<PathBuf>,
}

/// Everything, for --json.
#[derive(Serialize)]
struct Report<'a> {
    comparisons: &'a [Summary],
    scores: &'a [Score],
    #[serde(skip_serializing_if = "Option::is_none")]
    asked: Option<Asked<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    judgments: Vec<Scored>,
}

/// What was asked for verdicts.
#[derive(Serialize)]
struct Asked<'a> {
    judge: &'a str,
    endpoint: &'a str,
    tokens: Usage,
    cost: Option<f64>,
    /// By question, both orders: the probability that the model's answer is better.
    preferences: BTreeMap<&'a str, Option<f64>>,
    /// Questions that the endpoint refuses, with what it says.
    rejected: BTreeMap<&'a str, &'a str>,
}

impl Judge {
    pub fn run(self) -> Result<()> {
        let gamed = self.difficulties.as_deref().map(Gamed::read).transpose()?;
        let resampling = Resampling { rounds: self.rounds as usize, seed: self.seed };
        if !self.annotations.is_empty() {
            self.keep_inputs()?;
            let found = annotations::read(&self.annotations)?;
            let summaries: Vec<Summary> = found
                .iter()
                .map(|one| Summary::new(one, None, gamed.as_ref(), resampling))
                .collect();
            let scores = summary::scores(&found, &[], resampling);
            return self.show(&Report {
                comparisons: &summaries,
                scores: &scores,
                asked: None,
                judgments: Vec::new(),
            });
        }
        if !self.judgments.is_empty() {
            self.keep_inputs()?;
            let found = judgments::read(&self.judgments)?;
            let judgments = found.iter().map(|one| one.score(resampling)).collect();
            return self.show(&Report { comparisons: &[], scores: &[], asked: None, judgments });
        }
        let (Some(baseline), Some(answers), Some(name)) =
            (&self.baseline, &self.answers, &self.judge)
        else {
            bail!("--baseline, --answers and --judge are needed");
        };
        let (mut baseline, mut model) = (Answers::read(baseline)?, Answers::read(answers)?);
        baseline.tell_apart(&mut model);
        let questions = self.questions.as_deref().map(Questions::read).transpose()?;
        let missing = if self.common { Missing::LeaveOut } else { Missing::Refuse };
        let mut pairs = pairs(&baseline, &model, questions.as_ref(), missing)?;
        pairs.truncate(self.limit.map_or(usize::MAX, NonZeroUsize::get));
        let judge = fpo_judge::Judge {
            model: name.clone(),
            wording: match &self.prompt {
                Some(path) => Wording::Template(Template::read(path)?),
                None => Wording::Own,
            },
            temperature: self.temperature,
            max_tokens: self.max_tokens,
            logprobs: !self.no_logprobs,
            body: self.body.clone().unwrap_or_default(),
        };
        let Some(verdicts) = self.out.as_ref().filter(|_| !self.dry_run) else {
            return self.print_requests(&judge, &pairs);
        };
        let endpoint = self.endpoint()?;
        let settings = judge.settings(endpoint.url(), &baseline.generator, &model.generator);
        let (mut journal, kept) = Journal::open(verdicts, VERDICTS, &settings)?;
        self.keep_inputs()?;
        let outcome = self.ask(&endpoint, &judge, &pairs, &mut journal, kept)?;

        let rows = summary::judged(&pairs, &outcome.verdicts);
        let names = [&*baseline.generator, &*model.generator, &**name];
        if let Some(path) = &self.save_annotations {
            annotations::write(path, &pairs, &rows, names)?;
        }
        let comparison = Annotations {
            baseline: baseline.generator.clone(),
            model: model.generator.clone(),
            rows,
        };
        let orders = Some(summary::orders(&outcome.verdicts));
        let scores =
            summary::scores(std::slice::from_ref(&comparison), &outcome.verdicts, resampling);
        let tokens = session::usage(&outcome.verdicts);
        let preferences =
            pairs.iter().zip(&comparison.rows).map(|(pair, row)| (&*pair.question, row.preference));
        let rejected = outcome.rejections.iter().map(|one| (&*one.question, &*one.message));
        let asked = Asked {
            judge: name,
            endpoint: endpoint.url(),
            tokens,
            cost: self.prices().map(|prices| prices.cost(tokens)),
            preferences: preferences.collect(),
            rejected: rejected.collect(),
        };
        if let Some((question, message)) = asked.rejected.first_key_value() {
            say!(
                "  warning  {} requests were refused and have no verdict, such as on question {question}: {message}; \
                 the same command asks them again",
                outcome.rejections.len()
            );
        }
        let summary = Summary::new(&comparison, orders, gamed.as_ref(), resampling);
        self.show(&Report {
            comparisons: &[summary],
            scores: &scores,
            asked: Some(asked),
            judgments: Vec::new(),
        })
    }

    /// Refuses results that would replace what was read, or the verdicts.
    fn keep_inputs(&self) -> Result<()> {
        let inputs = [
            &self.baseline,
            &self.answers,
            &self.questions,
            &self.difficulties,
            &self.out,
            &self.prompt,
        ];
        let inputs = inputs.into_iter().flatten().chain(&self.annotations).chain(&self.judgments);
        let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).collect();
        let mut results = [&self.json, &self.save_annotations].into_iter().flatten();
        results.try_for_each(|result| streams::keep_apart(result, &inputs))
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let from_environment =
            |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let url = self.url.clone().or_else(|| from_environment("OPENAI_BASE_URL"));
        let key = Key::new(&from_environment("OPENAI_API_KEY").unwrap_or_default())?;
        let attempts = self.attempts.get();
        let timeout = Duration::from_secs(self.timeout);
        let patience = Patience { attempts, timeout, ..Patience::default() };
        Ok(Endpoint::new(url.as_deref().unwrap_or(OPENAI), key, patience)?)
    }

    fn prices(&self) -> Option<Prices> {
        Some(Prices { input: self.price_in?, output: self.price_out? })
    }

    fn print_requests(&self, judge: &fpo_judge::Judge, pairs: &[Pair]) -> Result<()> {
        let messages: Vec<Vec<Value>> = session::comparisons(pairs)
            .map(|comparison| comparison.messages(judge))
            .collect::<Result<_, _>>()?;
        for messages in &messages {
            out!("{}", judge.request(messages))?;
        }
        let usage = estimate::usage(messages.iter().map(Vec::as_slice));
        let cost = self.cost(usage);
        say!(
            "{} requests, about {} tokens in and {} out{cost}; nothing was asked",
            messages.len(),
            usage.prompt_tokens,
            usage.completion_tokens
        );
        Ok(())
    }

    fn ask(
        &self,
        endpoint: &Endpoint,
        judge: &fpo_judge::Judge,
        pairs: &[Pair],
        journal: &mut Journal,
        kept: Vec<Verdict>,
    ) -> Result<Outcome> {
        let _listener = Listener::new();
        interrupt::continue_with("the same command".to_owned());
        let total = session::comparisons(pairs).count();
        let asked: HashSet<&str> = pairs.iter().map(|pair| &*pair.question).collect();
        let earlier = kept.iter().filter(|verdict| asked.contains(&*verdict.question)).count();
        let mut task = reporter().begin("judge", "verdicts", total, earlier);
        let mut known = earlier;
        let mut progress = |now: session::Progress| {
            let cost = self.cost(now.usage);
            let message = format!(
                "{} tokens in, {} out{cost}",
                now.usage.prompt_tokens, now.usage.completion_tokens
            );
            task.advance(now.done.saturating_sub(known), &message);
            known = known.max(now.done);
        };
        let control =
            Control { parallel: self.parallel.get(), stop: &requested, progress: &mut progress };
        match session::run(endpoint, judge, pairs, journal, kept, control) {
            Ok(outcome) => {
                task.finish(&format!("{} verdicts", outcome.verdicts.len()));
                Ok(outcome)
            }
            Err(Error::Interrupted) => Err(Interrupted.into()),
            Err(error) => Err(error).context(format!("{}", journal.path().display())),
        }
    }

    /// Such as `, 1.23 to pay`; nothing without prices.
    fn cost(&self, usage: Usage) -> String {
        self.prices()
            .map(|prices| format!(", {:.2} to pay", prices.cost(usage)))
            .unwrap_or_default()
    }

    fn show(&self, report: &Report) -> Result<()> {
        if let Some(path) = &self.json {
            atomic::write_file(path, |file| -> Result<()> {
                serde_json::to_writer_pretty(&mut *file, report)?;
                std::io::Write::write_all(file, b"\n").context("writing")
            })?;
            if streams::is_stdout(path) {
                return Ok(());
            }
        }
        for summary in report.comparisons {
            out!("{}", comparison(summary))?;
        }
        if let Some(Asked { tokens, .. }) = &report.asked {
            out!(
                "{} tokens in, {} out{}\n",
                tokens.prompt_tokens,
                tokens.completion_tokens,
                self.cost(*tokens)
            )?;
        }
        for Scored { judge, category, baseline, rows, without_score, scores: found } in
            &report.judgments
        {
            let of = [category, judge].map(|name| name.as_deref().unwrap_or("-"));
            out!(
                "{}, judged by {}: {rows} rows against {baseline}, {without_score} games without a score\n{}\n",
                of[0],
                of[1],
                scores(found)
            )?;
        }
        match report.scores.is_empty() {
            true => Ok(()),
            false => out!("{}", scores(report.scores)),
        }
    }
}

/// One comparison in lines of a name and a value.
fn comparison(summary: &Summary) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    if let Some(raw) = &summary.raw {
        let error = raw.standard_error.map(|error| format!(" ± {error:.2}")).unwrap_or_default();
        let counts = format!("{} won, {} lost, {} drawn", raw.wins, raw.losses, raw.draws);
        lines.push(("win rate", format!("{:.2} %{error}  ({counts})", raw.win_rate)));
    }
    let controlled = match (&summary.length_controlled, &summary.length_controlled_is_missing) {
        (Some(found), _) => format!("{:.2} %{}", found.win_rate, interval(found.interval, 2)),
        (None, why) => why.clone().unwrap_or_default(),
    };
    lines.push(("at equal length", controlled));
    lines.push((
        "mean length",
        format!(
            "{:.0} characters, the baseline's {:.0}",
            summary.model_length, summary.baseline_length
        ),
    ));
    if let Some(orders) = &summary.orders {
        let percent =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1} %"));
        lines.push((
            "first preferred",
            format!("{}  (50 % without a position bias)", percent(orders.first_preferred)),
        ));
        lines.push(("orders agree", percent(orders.agreement)));
        let none: usize = orders.without_verdict.values().sum();
        let why =
            orders.without_verdict.iter().map(|(why, count)| format!("{count} {}", reason(*why)));
        let why: Vec<String> = why.collect();
        let why = if none == 0 { String::new() } else { format!("  ({})", why.join(", ")) };
        lines.push((
            "without a verdict",
            format!("{none} of {} replies{why}", none + orders.verdicts),
        ));
    }
    let head = format!(
        "{} against {}: {} of {} questions have a preference\n",
        summary.model, summary.baseline, summary.judged, summary.questions
    );
    lines.iter().fold(head, |text, (name, value)| format!("{text}  {name:<18}  {value}\n"))
}

fn reason(why: fpo_judge::verdict::NoVerdict) -> &'static str {
    use fpo_judge::verdict::NoVerdict;
    match why {
        NoVerdict::Refusal => "refused",
        NoVerdict::CutOff => "cut off: raise --max-tokens",
        NoVerdict::NoLetter => "without a letter",
    }
}

/// Such as `  [48.1, 53.9]`; nothing where there was no resampling.
fn interval(ends: [Option<f64>; 2], digits: usize) -> String {
    match ends {
        [None, None] => String::new(),
        _ => {
            let [low, high] =
                ends.map(|end| end.map_or("∞".to_owned(), |end| format!("{end:.digits$}")));
            format!("  [{low}, {high}]")
        }
    }
}

fn scores(scores: &[Score]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "model",
        "score",
        "95 %",
        "beats the baseline",
        "95 %",
        "battles",
    ]);
    for row in scores {
        let ends = |ends: [Option<f64>; 2], digits| interval(ends, digits).trim().to_owned();
        let score = match (row.score, row.win_rate) {
            (Some(score), _) => format!("{score:.0}"),
            (None, Some(rate)) => (if rate > 50.0 { "never lost" } else { "never won" }).to_owned(),
            (None, None) => "not connected".to_owned(),
        };
        let rate = row.win_rate.map_or("-".to_owned(), |rate| format!("{rate:.1} %"));
        let cells = [
            row.model.clone(),
            score,
            ends(row.interval, 0),
            rate,
            ends(row.win_rate_interval, 1),
            row.battles.to_string(),
        ];
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn object(text: &str) -> Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(text).context("isn't JSON")?;
    let Value::Object(fields) = value else { bail!("isn't a JSON object") };
    let taken = fields.keys().find(|name| matches!(name.as_str(), "messages" | "model" | "stream"));
    ensure!(taken.is_none(), "`{}` can't be replaced", taken.map_or("", |name| name));
    Ok(fields)
}

fn not_negative(text: &str) -> Result<f64> {
    let value: f64 = text.parse().context("isn't a number")?;
    ensure!(value.is_finite() && value >= 0.0, "is negative or no number");
    Ok(value)
}
