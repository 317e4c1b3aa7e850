//! `fpo chat`, from a pipe: a message a line.

use std::{
    fs,
    io::Write,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    common::{arg, fpo, text},
    score::{fixture, json_lines},
};

/// What the program prints when it hears these lines.
fn hear(args: &[&str], lines: &str) -> Output {
    let mut child = fpo(args).stdin(Stdio::piped()).spawn().unwrap();
    // A program that ends early doesn't read everything.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

fn talk(args: &[&str], lines: &str) -> String {
    let output = hear(args, lines);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Oracle: `fpo generate` on the conversation so far.
#[test]
fn a_conversation_is_the_prompt_of_each_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (model, saved) = (fixture("score/chat"), folder.path().join("talk.jsonl"));
    let base = ["chat", "--model", arg(&model), "--max-new-tokens", "10"];
    let lines = format!(
        "Hi.\n\n/system Be brief.\nAnd you?\n/save {0}\n/reset\n//etc is what?\n/save {0}\n/quit\nnever said\n",
        arg(&saved)
    );
    let printed = talk(&base, &lines);
    let last = json_lines(&saved).remove(0);
    assert_eq!(last["model"], "chat");
    let after_reset = last["messages"].as_array().unwrap();
    assert_eq!(
        after_reset[..2],
        [message("system", "Be brief."), message("user", "/etc is what?")]
    );

    let ask = |messages: &[Value]| {
        let (prompts, out) = (folder.path().join("prompts.jsonl"), folder.path().join("out.jsonl"));
        fs::write(&prompts, json!({ "prompt": messages }).to_string()).unwrap();
        let args = ["--max-new-tokens", "10", "--prompts", arg(&prompts), "--out", arg(&out)];
        crate::common::succeed(&[&["generate", "--model", arg(&model)], &args[..]].concat());
        json_lines(&out)[0]["response"].as_str().unwrap().to_owned()
    };
    let mut messages = vec![message("user", "Hi.")];
    let first = ask(&messages);
    messages.push(message("assistant", first.trim()));
    messages.push(message("user", "And you?"));
    messages.insert(0, message("system", "Be brief."));
    let second = ask(&messages);
    let third = ask(&after_reset[..2]);
    assert_eq!(after_reset[2], message("assistant", third.trim()));
    let whole = [first, second, third].map(|answer| shown(&answer) + "\n").concat();
    assert_eq!(printed, whole);
    // Heard again, all is said again.
    fs::remove_file(&saved).unwrap();
    assert_eq!(talk(&base, &lines), printed);
}

/// A terminal doesn't obey what a model says.
fn shown(answer: &str) -> String {
    let shown = |c: char| if c.is_control() && !"\n\t".contains(c) { '\u{fffd}' } else { c };
    answer.chars().map(shown).collect()
}

/// Oracle: each model alone.
#[test]
fn two_models_answer_from_their_own_memories() {
    let folder = tempfile::tempdir().unwrap();
    let models = [fixture("score/chat"), fixture("score/plain")];
    let talk_of = |models: &[&str], name: &str| {
        let saved = folder.path().join(name);
        let mut args = vec!["chat", "--max-new-tokens", "8", "--temperature", "1.2"];
        args.extend(models.iter().flat_map(|model| ["--model", model]));
        let printed = talk(&args, &format!("Hi.\nWhy?\n/save {}\n", arg(&saved)));
        (printed, json_lines(&saved))
    };
    let (printed, both) = talk_of(&[arg(&models[0]), arg(&models[1])], "both");
    for (index, name) in ["chat", "plain"].into_iter().enumerate() {
        let (_, alone) = talk_of(&[arg(&models[index])], name);
        assert_eq!(both[index], alone[0]);
        assert_eq!(both[index]["model"], name);
        assert_eq!(printed.matches(&format!("{name}:\n")).count(), 2, "{printed}");
    }
    assert_ne!(both[0]["messages"], both[1]["messages"]);
}

#[test]
fn a_long_conversation_forgets_its_oldest_turns_but_not_the_system_message() {
    let folder = tempfile::tempdir().unwrap();
    let (model, saved) = (fixture("score/chat"), folder.path().join("talk.jsonl"));
    let mut lines = "/system Be kind.\n".to_owned();
    for number in 0..12 {
        lines += &format!("Message {number}: one two three four five six.\n");
    }
    lines += &format!("/save {}\n", arg(&saved));
    let output = hear(&["chat", "--model", arg(&model), "--max-new-tokens", "8"], &lines);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("turns forgotten from its start: 1"), "{}", text(&output));
    let saved = json_lines(&saved).remove(0);
    let messages = saved["messages"].as_array().unwrap();
    assert_eq!(messages[0], message("system", "Be kind."));
    assert_eq!(messages[1]["role"], "user");
    let first = messages[1]["content"].as_str().unwrap();
    assert!(first.starts_with("Message ") && !first.starts_with("Message 0"), "{first}");
    let last = &messages[messages.len() - 2];
    assert_eq!(last, &message("user", "Message 11: one two three four five six."));
}

#[test]
fn what_cannot_be_said_ends_a_pipe_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("score/chat");
    let there = folder.path().join("there");
    fs::write(&there, "mine").unwrap();
    let save = format!("/save {}\n", arg(&there));
    let long = "word ".repeat(3000) + "\n";
    for (lines, says) in [
        ("/sing\n", "no command /sing"),
        (save.as_str(), "exists already"),
        (long.as_str(), "too many for the model's"),
    ] {
        let output = hear(&["chat", "--model", arg(&model), "--max-new-tokens", "4"], lines);
        let printed = text(&output);
        assert!(!output.status.success() && printed.contains(says), "{printed}");
        assert_eq!(printed.matches("error:").count(), 1, "{printed}");
    }
    assert_eq!(fs::read_to_string(&there).unwrap(), "mine");
    let three = ["chat", "--model", "a", "--model", "b", "--model", "c"];
    assert!(crate::common::fail(&three).contains("one or two"));
}
