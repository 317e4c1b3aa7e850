//! Rows as people bring them: parting conversations, ShareGPT, Alpaca, tool calls, `NaN`, rows that can't be used.

use super::*;
use serde_json::{Value, json};

fn conversation(prompt: &Prompt) -> &Conversation {
    match prompt {
        Prompt::Messages(conversation) => conversation,
        Prompt::Text(text) => panic!("{text:?} is no conversation"),
    }
}

fn read_rows_of(
    name: &str,
    text: &str,
    on_error: OnError,
) -> Result<(Vec<Pair>, ReadSummary), SourceError> {
    let (_folder, path) = file(name, text);
    read_pairs(&path, RowPolicy { on_empty: OnEmpty::Refuse, on_error })
}

/// Oracle: `trl.data_utils.extract_prompt` of TRL 1.16 on the same rows, except where one side is the beginning of the other: there TRL
/// leaves the shorter one without an answer (or without its last character), and the split lies before its last answer here.
#[test]
fn conversations_are_split_where_they_part() {
    let turns = |turns: &[(&str, &str)]| {
        json!(
            turns
                .iter()
                .map(|(role, content)| json!({"role": role, "content": content}))
                .collect::<Vec<_>>()
        )
    };
    let (q, one, eins) = (("user", "q"), ("assistant", "one"), ("assistant", "eins"));
    let (next, two, zwei) = (("user", "next"), ("assistant", "two"), ("assistant", "zwei"));
    type Turns<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Turns, Turns, usize); 6] = [
        (&[q, one], &[q, eins], 1),
        (&[q, one, next, two], &[q, eins, next, zwei], 1),
        (&[q, one, next, two], &[q, one, next, zwei], 3),
        // They part at the user's turn.
        (&[q, one, next, two], &[q, one, ("user", "else"), zwei], 2),
        // Of different lengths.
        (&[q, one, next, two], &[q, eins], 1),
        // One is the beginning of the other.
        (&[q, one], &[q, one, next, two], 1),
    ];
    for (chosen, rejected, shared) in cases {
        let row = json!({"chosen": turns(chosen), "rejected": turns(rejected)}).to_string();
        let pair = pair_from(&row).unwrap();
        assert_eq!(conversation(&pair.prompt).messages, messages(&chosen[..shared]), "{row}");
        for (found, side) in [(&pair.chosen, chosen), (&pair.rejected, rejected)] {
            let expected = Response::from_messages(messages(&side[shared..]));
            assert_eq!(*found, expected, "{row}");
        }
        // The same with the prompt in its own column, as a text.
        let row = json!({"prompt": "q", "chosen": turns(chosen), "rejected": turns(rejected)});
        assert_eq!(pair_from(&row.to_string()).unwrap(), pair, "{row}");
    }
    // An explicit prompt is the prompt; the answers may have several turns.
    let row = json!({"prompt": turns(&[q]), "chosen": turns(&[one, next, two]), "rejected": turns(&[q, eins])});
    let pair = pair_from(&row.to_string()).unwrap();
    assert_eq!(conversation(&pair.prompt).messages, messages(&[q]));
    assert_eq!(pair.chosen, Response::Messages(messages(&[one, next, two])));
    assert_eq!(pair.rejected, "eins".into());
}

/// Oracle: `extract_prompt` of TRL 1.16.
#[test]
fn texts_are_split_after_their_common_beginning() {
    let cases = [
        ("Sky colour? Blue.", "Sky colour? Green.", ["Sky colour?", " Blue.", " Green."]),
        ("The sky is bright", "The sky is blue", ["The sky is b", "right", "lue"]),
        ("Wörter: ä", "Wörter: ö", ["Wörter:", " ä", " ö"]),
    ];
    for (chosen, rejected, [prompt, a, b]) in cases {
        let pair = pair_from(&json!({"chosen": chosen, "rejected": rejected}).to_string()).unwrap();
        assert_eq!(pair.prompt, Prompt::Text(prompt.into()));
        assert_eq!((pair.chosen, pair.rejected), (a.into(), b.into()));
    }
    for (chosen, rejected) in [("a", "b"), ("same", "same"), ("same", "same but longer")] {
        let error = pair_from(&json!({"chosen": chosen, "rejected": rejected}).to_string());
        assert!(chain(&error.unwrap_err()).contains("must have a common beginning"), "{chosen}");
    }
}

#[test]
fn sharegpt_and_alpaca_rows() {
    let system = ("system", "Be brief.");
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
    let cases = [
        (
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            messages(&[("user", "q")]),
        ),
        (
            r#"{"system": "Be brief.", "conversations": [{"from": "Human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
            messages(&[system, ("user", "q")]),
        ),
        (
            r#"{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
            messages(&[("user", "q")]),
        ),
        (
            r#"{"system": "Be brief.", "instruction": "q", "input": "", "output": "a"}"#,
            messages(&[system, ("user", "q")]),
        ),
        (
            r#"{"instruction": "q", "input": "more", "output": "a", "history": [["b", "c"]]}"#,
            messages(&[("user", "b"), ("assistant", "c"), ("user", "q\nmore")]),
        ),
    ];
    for (line, expected) in cases {
        let example = example_from(line).unwrap();
        assert_eq!(conversation(&example.prompt).messages, expected, "{line}");
        assert_eq!(example.response, "a".into(), "{line}");
    }
    let text = |line| match example_from(line).unwrap() {
        SftExample { prompt: Prompt::Text(text), response: Response::Text(response), .. } => {
            (text, response)
        }
        other => panic!("{other:?}"),
    };
    let both = |prompt: &str, response: &str| (prompt.to_owned(), response.to_owned());
    assert_eq!(text(r#"{"instruction": "q", "input": "", "output": "a"}"#), both("q", "a"));
    assert_eq!(
        text(r#"{"instruction": "q", "input": "i", "output": "a", "text": "x"}"#),
        both("q\ni", "a")
    );
    assert_eq!(text(r#"{"instruction": "q", "input": null, "response": "a"}"#), both("q", "a"));

    // Pairs of both kinds.
    let pair = pair_from(
        r#"{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}"#,
    );
    let pair = pair.unwrap();
    assert_eq!(conversation(&pair.prompt).messages, messages(&[("user", "q")]));
    assert_eq!((pair.chosen, pair.rejected), ("a".into(), "b".into()));
    let pair =
        pair_from(r#"{"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"}"#).unwrap();
    assert_eq!((pair.prompt, pair.chosen), (Prompt::Text("q\ni".into()), "a".into()));

    let example = example_from(
        r#"{"tools": "[{\"name\": \"f\"}]", "conversations": [{"from": "human", "value": "q"}, {"from": "function_call",
            "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}]}"#
            .replace('\n', " ")
            .as_str(),
    );
    let example = example.unwrap();
    let Conversation { messages, tools, .. } = conversation(&example.prompt);
    assert_eq!(messages[1].get("tool_calls"), Some(&calls));
    assert_eq!((messages[2].role(), &*messages[2].text()), ("tool", "2"));
    assert_eq!(*tools, Some(json!([{"name": "f"}])));
    let error = example_from(r#"{"conversations": [{"from": "narrator", "value": "q"}]}"#);
    assert!(chain(&error.unwrap_err()).contains("message 0: its `from` is \"narrator\""));
}

#[test]
fn messages_keep_every_key() {
    let call = json!([{"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": null}}}]);
    let history = json!([
        {"role": "user", "content": "q", "name": "Ann"},
        {"role": "assistant", "content": null, "tool_calls": call, "reasoning_content": "hm"},
        {"role": "tool", "content": "12", "tool_call_id": "c1"},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let row = json!({"prompt": history, "tools": tools, "chat_template_kwargs": {"enable_thinking": false},
        "chosen": [{"role": "assistant", "content": null, "tool_calls": call}], "rejected": "no"});
    let pair = pair_from(&row.to_string()).unwrap_err();
    assert!(
        chain(&pair).contains("`rejected` must be a list of messages, but is a text"),
        "one kind in both"
    );
    let mut row = row;
    row["rejected"] = json!([{"role": "assistant", "content": "no"}]);
    let pair = pair_from(&row.to_string()).unwrap();
    let found = conversation(&pair.prompt);
    assert_eq!(serde_json::to_value(&found.messages).unwrap(), history);
    assert_eq!(found.tools, Some(tools));
    assert_eq!(found.variables.get("enable_thinking"), Some(&json!(false)));
    let Response::Messages(chosen) = &pair.chosen else { panic!("{:?}", pair.chosen) };
    assert_eq!(chosen[0].get("tool_calls"), Some(&call));
    assert_eq!(pair.rejected, "no".into());
    assert!(!pair.chosen.is_empty(), "a call says something");

    for (row, says) in [
        (
            json!({"prompt": [{"role": "user", "content": null}], "chosen": "a", "rejected": "b"}),
            "message 0: its `content` is null",
        ),
        (
            json!({"prompt": [{"content": "q"}], "chosen": "a", "rejected": "b"}),
            "missing field `role`",
        ),
        (
            json!({"prompt": ["q"], "chosen": "a", "rejected": "b"}),
            "message 0: it is a text, not an object",
        ),
        (
            json!({"prompt": "q", "tools": [{"name": "f"}], "chosen": "a", "rejected": "b"}),
            "`tools` needs a prompt that is a list",
        ),
        (
            json!({"prompt": "q", "tools": "{", "chosen": "a", "rejected": "b"}),
            "column `tools` isn't JSON",
        ),
    ] {
        let error = chain(&pair_from(&row.to_string()).unwrap_err());
        assert!(error.contains(says) && error.contains("data.on_error"), "{error}");
    }
    // No tools at all, in the ways that sets write it.
    for tools in [Value::Null, json!([]), json!("[]"), json!("")] {
        let row =
            json!({"prompt": "q", "tools": tools, "chosen": "a", "rejected": "b"}).to_string();
        assert!(pair_from(&row).is_ok(), "{row}");
    }
}

/// Oracle: Python's `json`, which reads all of these.
#[test]
fn nan_and_infinities_are_read() {
    let row = r#"{"prompt": "NaN \" Infinity", "chosen": "-Infinity", "rejected": "b", "x": NaN, "y": [-Infinity, Infinity,NaN]}"#;
    let pair = pair_from(row).unwrap();
    assert_eq!(pair.prompt, Prompt::Text("NaN \" Infinity".into()));
    assert_eq!(pair.chosen, "-Infinity".into());
    let error =
        chain(&pair_from(r#"{"prompt": "q", "chosen": NaN, "rejected": "b"}"#).unwrap_err());
    assert!(error.contains("column `chosen`") && error.contains("null"), "{error}");
    assert!(chain(&pair_from(r#"{"prompt": Nan}"#).unwrap_err()).contains("isn't a JSON object"));
}

#[test]
fn arrays_are_read_like_lines() {
    let rows = [
        r#"{"prompt": "], [", "chosen": "a\"]", "rejected": "{"}"#,
        r#"{"prompt": "q", "chosen": "c", "rejected": "d", "x": NaN}"#,
    ];
    for text in [
        format!("[{}, {}]", rows[0], rows[1]),
        format!("\u{feff}\n [\n  {},\n  {}\n]\n\n", rows[0].replace(", \"", ",\n\""), rows[1]),
    ] {
        for bytes in [text.as_bytes().to_vec(), gzip(text.as_bytes())] {
            let (_folder, path) = file("a.json", bytes);
            let (pairs, summary) = read_pairs(&path, OnEmpty::Refuse).unwrap();
            assert_eq!(summary, summary_of(1, 2, 0));
            assert_eq!(pairs[0].prompt, Prompt::Text("], [".into()));
            assert_eq!((&pairs[0].chosen, &pairs[1].chosen), (&"a\"]".into(), &"c".into()));
        }
    }
    for (text, says) in [
        (format!("[{}", rows[0]), "row 0 (counted from 0): can't be read"),
        (format!("[{},]", rows[0]), "row 1 (counted from 0): isn't a JSON object"),
        (format!("[{} {}]", rows[0], rows[1]), "row 0 (counted from 0): isn't a JSON object"),
        (format!("[{}]\n{}", rows[0], rows[1]), "something follows the array"),
        ("[1]".to_owned(), "isn't a JSON object"),
        ("[ ]".to_owned(), "contains no rows"),
        ("[".to_owned(), "can't be read"),
    ] {
        let error = chain(&read_rows_of("a.json", &text, OnError::Refuse).unwrap_err());
        assert!(error.contains(says), "{error}\nlacks {says}");
    }
}

#[test]
fn rows_that_cant_be_used_stop_the_run_or_are_skipped() {
    let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
    let user = r#"{"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "q"}]}"#;
    let null = r#"{"prompt": "q", "chosen": null, "rejected": "b"}"#;
    let empty = r#"{"prompt": "q", "chosen": "", "rejected": "b"}"#;
    let text = [good, user, null, empty, good].join("\n");
    let error = chain(&read_rows_of("a.jsonl", &text, OnError::Refuse).unwrap_err());
    for part in ["a.jsonl: line 2: column `chosen` must end with", "data.on_error = \"skip\""] {
        assert!(error.contains(part), "{error}");
    }
    let (pairs, summary) = read_rows_of("a.jsonl", &text, OnError::Skip).unwrap();
    assert_eq!(pairs.iter().map(|pair| pair.id).collect::<Vec<_>>(), [0, 4]);
    assert_eq!((summary.rows, summary.skipped, summary.dropped_empty), (5, 3, 0));
    let first = summary.first_skipped.unwrap();
    assert!(first.contains("a.jsonl: line 2: column `chosen` must end with"), "{first}");
    // Nothing usable is an error in any case, and so is a file that isn't whole.
    let error = chain(&read_rows_of("a.jsonl", user, OnError::Skip).unwrap_err());
    assert!(
        error.contains("none of the 1 rows can be used") && error.contains("line 1"),
        "{error}"
    );
    assert!(read_rows_of("a.jsonl", &format!("{good}\n{{"), OnError::Skip).is_err());
}
