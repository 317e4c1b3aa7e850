use super::*;
use crate::testing::{cases, damaged};
use proptest::prelude::*;
use std::io::Write;
use std::path::PathBuf;

mod folders;
mod parquet_files;
mod rows;
mod tokens;

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

/// A temporary folder with this file in it.
fn file(name: &str, bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn summary_of(files: usize, rows: usize, dropped_empty: usize) -> ReadSummary {
    ReadSummary { files, rows, dropped_empty, ..ReadSummary::default() }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pair_from(line: &str) -> Result<Pair, SourceError> {
    let (_folder, path) = file("a.jsonl", line);
    read_pairs(&path, OnEmpty::Refuse).map(|(pairs, _)| pairs.into_iter().next().unwrap())
}

fn example_from(line: &str) -> Result<SftExample, SourceError> {
    let (_folder, path) = file("a.jsonl", line);
    read_sft(&path, OnEmpty::Refuse).map(|(examples, _)| examples.into_iter().next().unwrap())
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| text + ": " + &cause.to_string())
}

#[test]
fn schemas_of_pairs() {
    let user = || Prompt::Messages(messages(&[("user", "q")]).into());
    let text = || Prompt::Text("q".into());
    let cases = [
        (r#"{"prompt": "q", "chosen": "a", "rejected": "b", "extra": 1}"#, text()),
        // ultrafeedback_binarized: the lists hold the prompt too.
        (
            r#"{"prompt": "q", "prompt_id": "x",
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
                "messages": [], "score_chosen": 8.0}"#,
            user(),
        ),
        // TRL, conversational.
        (
            r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}]}"#,
            user(),
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}"#,
            user(),
        ),
        (
            r#"{"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}]}"#,
            text(),
        ),
        // TRL, implicit prompt.
        (
            r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
            user(),
        ),
        // HH-RLHF.
        (
            r#"{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}"#,
            user(),
        ),
    ];
    for (line, prompt) in cases {
        let expected = Pair { id: 0, prompt, chosen: "a".into(), rejected: "b".into() };
        assert_eq!(pair_from(&line.replace('\n', " ")).unwrap(), expected, "{line}");
    }
}

#[test]
fn schemas_of_examples() {
    let user = || Prompt::Messages(messages(&[("user", "q")]).into());
    let text = || Prompt::Text("q".into());
    let cases = [
        (r#"{"prompt": "q", "response": "a"}"#, text()),
        (r#"{"prompt": "q", "completion": "a"}"#, text()),
        (
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
            user(),
        ),
        (
            r#"{"prompt": "ignored", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            user(),
        ),
        (r#"{"prompt": "q", "chosen": "a", "rejected": ""}"#, text()),
        (r#"{"chosen": "\n\nHuman: q\n\nAssistant: a"}"#, user()),
        (
            r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            user(),
        ),
    ];
    for (line, prompt) in cases {
        assert_eq!(
            example_from(line).unwrap(),
            SftExample { id: 0, prompt, response: "a".into() },
            "{line}"
        );
    }
}

#[test]
fn dialogues() {
    // (chosen, rejected, prompt, responses)
    #[rustfmt::skip]
    let cases = [
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e",
         &[("user", "a"), ("assistant", "b"), ("user", "c")][..], ["d", "e"]),
        // One is longer: the prompt is their common start.
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "\n\nHuman: a\n\nAssistant: x",
         &[("user", "a")], ["b\n\nHuman: c\n\nAssistant: d", "x"]),
        // Two consecutive assistant turns are one message, and a response follows a user turn.
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: e", "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: f",
         &[("user", "a"), ("assistant", "b\n\nc"), ("user", "d")], ["e", "f"]),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "\n\nHuman: a\n\nAssistant: b\n\nAssistant: d",
         &[("user", "a")], ["b\n\nAssistant: c", "b\n\nAssistant: d"]),
        // The common start may end inside a character.
        ("\n\nHuman: a\n\nAssistant:ä", "\n\nHuman: a\n\nAssistant:ö", &[("user", "a")], ["ä", "ö"]),
        ("\n\nHuman:  a \n\nAssistant:  b", "\n\nHuman:  a \n\nAssistant:c ", &[("user", " a ")], [" b", "c "]),
    ];
    for (chosen, rejected, prompt, responses) in cases {
        let (found, [a, b]) = dialogue::split_pair(chosen, rejected).unwrap();
        assert_eq!((found, [a.as_str(), b.as_str()]), (messages(prompt), responses), "{chosen:?}");
    }
    for text in ["", "plain", "\n\nHuman: a", "\n\nAssistant: a", "Human: a\n\nAssistant: b"] {
        assert_eq!(dialogue::split_pair(text, text), None, "{text:?}");
    }
    let text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ";
    let (prompt, _) = dialogue::split_pair(text, text).unwrap();
    assert_eq!(Prompt::Messages(prompt.into()).to_text(), text, "the conversion round-trips");
}

#[test]
fn lines_and_ids() {
    // A byte order mark, Windows line ends, blank lines and no end of line at the end.
    let text = "\u{feff}{\"prompt\":\"q\",\"response\":\"a\"}\r\n\n  \n{\"prompt\":\"q\",\"response\":\"b\"}";
    for bytes in
        [text.as_bytes().to_vec(), gzip(text.as_bytes()), [gzip(text.as_bytes()), vec![]].concat()]
    {
        // The content decides, not the name.
        let (_folder, path) = file("a.whatever", bytes);
        let (examples, summary) = read_sft(&path, OnEmpty::Refuse).unwrap();
        let found: Vec<_> = examples
            .iter()
            .map(|example| (example.id, example.response.to_text().into_owned()))
            .collect();
        assert_eq!(found, [(0, "a".to_owned()), (1, "b".to_owned())]);
        assert_eq!(summary, summary_of(1, 2, 0));
    }
}

#[test]
fn a_folder_is_read_by_name() {
    let line = |response: &str| format!("{{\"prompt\": \"q\", \"response\": \"{response}\"}}\n");
    let (folder, _) = file("b.jsonl", line("2"));
    std::fs::write(folder.path().join("a.jsonl.gz"), gzip((line("0") + &line("1")).as_bytes()))
        .unwrap();
    std::fs::write(folder.path().join("c.json"), line("3")).unwrap();
    std::fs::write(folder.path().join("README.md"), "not data").unwrap();
    std::fs::write(folder.path().join(".half.jsonl"), "not whole").unwrap();
    let (examples, summary) = read_sft(folder.path(), OnEmpty::Refuse).unwrap();
    let found: Vec<_> = examples
        .iter()
        .map(|example| format!("{}{}", example.id, example.response.to_text()))
        .collect();
    assert_eq!(found, ["00", "11", "22", "33"]);
    assert_eq!(summary, summary_of(3, 4, 0));
}

#[test]
fn empty_responses() {
    let text = "{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\" \\n\"}\n\
                {\"prompt\":\"q\",\"chosen\":\"c\",\"rejected\":\"d\"}\n";
    let (_folder, path) = file("a.jsonl", text);
    let error = read_pairs(&path, OnEmpty::Refuse).unwrap_err().to_string();
    assert!(
        error.contains("a.jsonl: line 2: column `rejected` contains an empty response"),
        "{error}"
    );
    assert!(read_pairs(&path, OnEmpty::Auto).is_err(), "a row with a prompt column is refused");
    let (pairs, summary) = read_pairs(&path, OnEmpty::Drop).unwrap();
    assert_eq!(pairs.iter().map(|pair| pair.id).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(summary, summary_of(1, 3, 1));
    assert_eq!(
        read_sft(&path, OnEmpty::Refuse).unwrap().0.len(),
        3,
        "fine-tuning uses the chosen side only"
    );
}

#[test]
fn errors_say_what_where_and_what_to_do() {
    let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let lines = |bad: &str| format!("{good}\n{bad}\n").into_bytes();
    let whole = gzip(good.repeat(50).as_bytes());
    #[rustfmt::skip]
    let cases: [(Vec<u8>, &[&str]); 18] = [
        (lines("{\"prompt\": "), &["line 2: isn't a JSON object", "EOF"]),
        (lines("[1, 2]"), &["line 2: isn't a JSON object", "one object per line", "an array of objects"]),
        (lines("\u{1}\u{2}"), &["line 2"]),
        (b"[\n{}]".to_vec(), &["row 0 (counted from 0): needs `chosen` and `rejected`"]),
        ([good.as_bytes(), b"\n{\"prompt\": \"\xff\xfe\"}"].concat(), &["line 2: isn't a JSON object", "unicode"]),
        (lines(&"[".repeat(100_000)), &["line 2"]),
        (lines(r#"{"question": "q", "answer": "a"}"#), &["line 2: needs `chosen` and `rejected`", "[question, answer]"]),
        (lines(r#"{"prompt": "q", "chosen": 3, "rejected": "b"}"#), &["line 2: column `chosen` must be a text or a list of messages, but is a number"]),
        (lines(r#"{"prompt": "q", "chosen": "a", "rejected": null}"#), &["column `rejected` must be a text, but is null"]),
        (lines(r#"{"prompt": {}, "chosen": "a", "rejected": "b"}"#), &["column `prompt`", "an object"]),
        (lines(r#"{"prompt": [], "chosen": "a", "rejected": "b"}"#), &["column `prompt`", "an empty list"]),
        (lines(r#"{"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"}"#), &["column `chosen`", "message 0: missing field `content`"]),
        (lines(r#"{"prompt": "q", "chosen": [{"role": "user", "content": "q"}], "rejected": []}"#), &["`chosen` must end with one assistant message"]),
        (lines(r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]}"#), &["line 2: `chosen` and `rejected` have different prompts"]),
        (lines(r#"{"chosen": "a", "rejected": "b"}"#), &["line 2: without a `prompt` column"]),
        (b"\n\n".to_vec(), &["contains no rows"]),
        (whole[..whole.len() - 9].to_vec(), &["line 1: can't be read; is the file complete?"]),
        ([&whole[..30], &[0xaa; 40]].concat(), &["line 1: can't be read"]),
    ];
    for (bytes, expected) in cases {
        let (_folder, path) = file("data.jsonl", &bytes);
        let error = chain(&read_pairs(&path, OnEmpty::Drop).unwrap_err());
        assert!(error.contains("data.jsonl"), "{error}");
        for part in expected {
            assert!(error.contains(part), "{error}\nlacks {part}");
        }
    }
    let error = example_from(r#"{"response": "a"}"#).unwrap_err().to_string();
    assert!(
        error.contains("needs `messages` or `conversations`, or `prompt` with")
            && error.contains("[response]"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(read_pairs(folder.path(), OnEmpty::Drop), Err(SourceError::NoFiles { .. })));
    assert!(matches!(
        read_pairs(&folder.path().join("x"), OnEmpty::Drop),
        Err(SourceError::Io { .. })
    ));
}

#[test]
fn endless_lines_are_refused() {
    // Compresses to 64 KiB: the limit applies to the decompressed size.
    let (_folder, path) = file("bomb.jsonl.gz", gzip(&vec![b' '; 70 << 20]));
    let error = read_pairs(&path, OnEmpty::Refuse).unwrap_err().to_string();
    assert!(error.contains("line 1: is longer than 67108864 bytes"), "{error}");
}

/// A row of each kind, as bytes.
fn rows_of_each_kind() -> Vec<u8> {
    let rows = [
        r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}"#,
        r#"{"chosen": "\n\nHuman: q\n\nAssistant: ä", "rejected": "\n\nHuman: q\n\nAssistant: ö"}"#,
    ];
    (rows.join("\n") + "\n").into_bytes()
}

proptest! {
    #![proptest_config(cases(2000))]
    #[test]
    fn damaged_lines_never_panic(
        bytes in prop_oneof![damaged(rows_of_each_kind(), 1), damaged(gzip(&rows_of_each_kind()), 8)],
    ) {
        let (_folder, path) = file("a", bytes);
        let _ = read_pairs(&path, OnEmpty::Drop);
        let _ = read_sft(&path, OnEmpty::Refuse);
    }

    /// Oracle: the pair from which the dialogues were made.
    #[test]
    fn dialogues_round_trip(
        turns in prop::collection::vec("[a-zäé ]{1,12}[.?]", 1..6),
        [chosen, rejected] in prop::array::uniform2("[a-z]{1,12}"),
    ) {
        let roles = ["user", "assistant"].into_iter().cycle();
        let turns = &turns[..turns.len() - (turns.len() + 1) % 2];
        let turns: Vec<(&str, &str)> = roles.zip(turns.iter().map(String::as_str)).collect();
        let prompt = Prompt::Messages(messages(&turns).into());
        let dialogue = |response: &str| prompt.to_text() + response;
        let (found, responses) = dialogue::split_pair(&dialogue(&chosen), &dialogue(&rejected)).unwrap();
        prop_assert_eq!((Prompt::Messages(found.into()), responses), (prompt, [chosen, rejected]));
    }
}

/// The sample in this repository.
#[test]
fn the_sample_of_hh_rlhf() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/samples/hh-rlhf.jsonl");
    let (pairs, summary) = read_pairs(&path, OnEmpty::Auto).unwrap();
    assert_eq!(summary, summary_of(1, 40, 1));
    let first = &pairs[0];
    let question = "What will happen if I drive my car into the water?";
    assert_eq!(first.prompt, Prompt::Messages(messages(&[("user", question)]).into()));
    assert!(
        first.chosen.to_text().starts_with("You may be asking")
            && first.rejected.to_text().starts_with("It’s not")
    );
    for Pair { id, prompt, chosen, rejected } in &pairs {
        let messages = prompt.to_messages();
        let roles = messages.iter().map(Message::role);
        let alternate = ["user", "assistant"].into_iter().cycle().take(messages.len());
        assert!(
            roles.eq(alternate) && messages.len() % 2 == 1,
            "pair {id} ends in the user's turn"
        );
        assert_ne!(chosen, rejected, "pair {id}");
    }
}

#[test]
fn hh_rlhf() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data/hh-rlhf/harmless-base-test.jsonl.gz");
    if !path.is_file() {
        eprintln!("SKIPPED hh_rlhf: there is no {}", path.display());
        return;
    }
    let error = read_pairs(&path, OnEmpty::Refuse).unwrap_err().to_string();
    assert!(error.contains("line 87: column `chosen` contains an empty response"), "{error}");
    // Whole dialogues: the four without an answer are dropped by default.
    let (pairs, summary) = read_pairs(&path, OnEmpty::Auto).unwrap();
    assert_eq!(summary, summary_of(1, 2312, 4));
    for pair in &pairs {
        let Prompt::Messages(Conversation { messages, .. }) = &pair.prompt else {
            panic!("{pair:?}")
        };
        let roles = messages.iter().map(Message::role);
        assert!(
            roles.eq(["user", "assistant"].into_iter().cycle().take(messages.len())),
            "pair {}",
            pair.id
        );
        assert_eq!(messages.len() % 2, 1, "pair {} ends in the user's turn", pair.id);
        assert!(!pair.chosen.to_text().starts_with("\n\nAssistant:"));
    }
    assert_eq!(pairs[1].prompt.to_messages()[0].text(), "How much alcohol can I drink per day?");
}

#[test]
fn an_empty_response_can_be_kept() {
    let line = r#"{"prompt": "q", "chosen": "", "rejected": "b"}"#;
    let (_folder, path) = file("a.jsonl", line);
    let (pairs, summary) = read_pairs(&path, OnEmpty::Keep).unwrap();
    assert_eq!((&pairs[0].chosen, pairs.len(), summary.dropped_empty), (&"".into(), 1, 0));
}

#[test]
fn name_and_columns_determine_items_and_prompts() {
    let messages = Prompt::Messages(messages(&[("user", "q")]).into());
    let rows = concat!(
        r#"{"text": "a"}"#,
        "\n",
        r#"{"prompt": "p", "completion": "c", "text": "whole"}"#,
        "\n",
        r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "c", "rejected": ""}"#,
        "\n"
    );
    let (_folder, path) = file("a.jsonl", rows);
    assert_eq!(
        read_items(&path).unwrap(),
        [
            Item::Text("a".to_owned()),
            Item::Example(SftExample {
                id: 1,
                prompt: Prompt::Text("p".to_owned()),
                response: "c".into()
            }),
            Item::Pair(Pair {
                id: 2,
                prompt: messages.clone(),
                chosen: "c".into(),
                rejected: "".into()
            }),
        ]
    );
    assert_eq!(
        read_prompts(&path).unwrap(),
        [Prompt::Text("a".to_owned()), Prompt::Text("p".to_owned()), messages]
    );
    // Lines are texts, whatever they look like.
    let (_folder, path) = file("a.TXT", "one\r\n\n{\"text\": 1}");
    let lines = ["one", "{\"text\": 1}"];
    assert_eq!(read_items(&path).unwrap(), lines.map(|line| Item::Text(line.to_owned())));
    assert_eq!(read_prompts(&path).unwrap(), lines.map(|line| Prompt::Text(line.to_owned())));

    for (name, content, says) in [
        ("a.jsonl", "{\"question\": 1}", "`prompt`, `messages` or `text`"),
        ("a.jsonl", "{\"text\": 1}", "`text` must be a text, but is a number"),
        ("a.txt", "\n\n", "no rows"),
    ] {
        let (_folder, path) = file(name, content);
        let error = chain(&read_prompts(&path).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
    let (_folder, path) = file("a.txt", "");
    std::fs::write(&path, b"good\n\xff\n").unwrap();
    assert!(chain(&read_items(&path).unwrap_err()).contains("line 2: isn't UTF-8"));
}
