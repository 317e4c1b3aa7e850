//! `fpo generate`: one prompt as it comes, files of prompts as JSON lines.

use std::fs;

use serde_json::{Value, json};

use crate::{
    common::{arg, fail, fpo, succeed},
    score::{fixture, json_lines},
};

/// Standard output alone.
fn printed(args: &[&str]) -> String {
    let output = fpo(args).output().unwrap();
    assert!(output.status.success(), "{}", crate::common::text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Oracle: the prompt alone, streamed.
#[test]
fn a_file_of_prompts_is_answered_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("score/chat");
    let prompts = ["Hi.", "Translate καλημέρα into Japanese, please.", "One two three four five"];
    let lines = folder.path().join("prompts.txt");
    fs::write(&lines, prompts.join("\n")).unwrap();
    let rows = folder.path().join("prompts.jsonl");
    let messages = |text: &str| json!([{ "role": "user", "content": text }]);
    let objects = prompts.map(|text| json!({ "prompt": messages(text) }).to_string() + "\n");
    fs::write(&rows, objects.concat()).unwrap();
    let out = folder.path().join("answers.jsonl");
    let base = ["generate", "--model", arg(&model), "--max-new-tokens", "24"];
    for sampling in [
        &["--repetition-penalty", "1.2"][..],
        &["--temperature", "1.5", "--top-k", "100", "--top-p", "0.98", "--seed", "7"],
    ] {
        let base = [&base[..], sampling].concat();
        for (file, batch_size) in [(&lines, "1"), (&lines, "100"), (&rows, "2")] {
            let more = ["--prompts", arg(file), "--batch-size", batch_size, "--out", arg(&out)];
            succeed(&[&base[..], &more].concat());
            let answers = json_lines(&out);
            assert_eq!(answers.len(), 3);
            for (answer, prompt) in answers.iter().zip(prompts) {
                let given = if file == &rows { messages(prompt) } else { Value::from(prompt) };
                assert_eq!(answer["prompt"], given);
                let names: Vec<&String> = answer.as_object().unwrap().keys().collect();
                assert_eq!(names, ["prompt", "response", "tokens", "stopped"]);
                assert_eq!(answer["stopped"], answer["tokens"] != 24);
            }
            assert!(answers.iter().any(|a| a["response"].as_str().unwrap().len() > 10));
            // The first prompt of a file has the seed's first stream, as a prompt alone has.
            let streamed = printed(&[&base[..], &["--prompt", prompts[0]]].concat());
            assert_eq!(streamed, answers[0]["response"].as_str().unwrap().to_owned() + "\n");
            let to_stdout = printed(&[&base[..], &more[..4]].concat());
            assert_eq!(to_stdout, fs::read_to_string(&out).unwrap());
        }
    }
}

#[test]
fn a_template_is_left_out_where_asked_and_stop_tokens_stop() {
    let folder = tempfile::tempdir().unwrap();
    let (chat, plain) = (fixture("score/chat"), folder.path().join("plain"));
    fs::create_dir(&plain).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(chat.join(name), plain.join(name)).unwrap();
    }
    let ask = |model, more: &[&str]| {
        let base = ["generate", "--model", arg(model), "--prompt", "Hello there"];
        printed(&[&base[..], more].concat())
    };
    assert_eq!(ask(&chat, &["--rendering", "none"]), ask(&plain, &[]));
    assert_eq!(ask(&chat, &["--raw"]), ask(&plain, &[]), "the old name of it");
    assert_eq!(ask(&chat, &["--rendering", "template"]), ask(&chat, &[]));
    let base = ["generate", "--model", arg(&plain), "--prompt", "Hello there"];
    assert!(fail(&[&base[..], &["--rendering", "template"]].concat()).contains("chat template"));
    assert_ne!(ask(&chat, &[]), ask(&plain, &[]));
    let answer = ask(&plain, &[]);
    let tokenizer = fpo_data::Tokenizer::load(&plain).unwrap();
    let tokens = tokenizer.encode(&answer).unwrap().ids;
    // A token of the text need not be one that was sampled, so one that changes the answer is looked for.
    let stopped = tokens.iter().find_map(|&id| {
        let stopped = ask(&plain, &["--stop", &tokenizer.token(id).unwrap()]);
        (stopped != answer).then_some(stopped)
    });
    let stopped = stopped.unwrap();
    assert!(answer.starts_with(stopped.trim_end_matches('\n')) && stopped.len() < answer.len());
}

#[test]
fn prompts_and_options_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("score/plain");
    let long = folder.path().join("long.txt");
    fs::write(&long, format!("short\n{}\n", "word ".repeat(80))).unwrap();
    let base = ["generate", "--model", arg(&model)];
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--prompts", arg(&long)], &["prompt 1", "160 positions"]),
        (&["--prompt", "a", "--max-new-tokens", "159"], &["prompt 0", "160 positions"]),
        (&["--prompts", "nowhere.jsonl"], &["nowhere.jsonl"]),
        (&["--prompt", "a", "--top-p", "1.5"], &["top_p = 1.5"]),
        (&["--prompt", "a", "--top-k", "0"], &["top_k = 0"]),
        (&["--prompt", "a", "--repetition-penalty", "0"], &["repetition"]),
        (&["--prompt", "a", "--stop", "no such token"], &["no such token", "vocabulary"]),
        (&["--prompt", "a", "--prompts", arg(&long)], &["--prompts"]),
        (&["--prompt", "a", "--out", "nowhere.jsonl"], &["--out is for"]),
    ];
    for (more, says) in cases {
        let printed = fail(&[&base[..], more].concat());
        for says in says {
            assert!(printed.contains(says), "{more:?}: no {says:?} in:\n{printed}");
        }
    }
}

/// Killed on the way, `generate` and `score` go on with what they have, and refuse it for other settings.
#[test]
fn rows_that_were_made_outlast_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = fixture("score/chat");
    let words = |i: usize| format!("One {} three {}", "two ".repeat(i % 5), i);
    let prompts = (0..400).map(|i| json!({ "prompt": words(i) }).to_string() + "\n");
    fs::write(path("prompts.jsonl"), prompts.collect::<String>()).unwrap();
    let pair = |i| json!({ "prompt": words(i), "chosen": words(i + 1), "rejected": "No." });
    let pairs = (0..400).map(|i| pair(i).to_string() + "\n");
    fs::write(path("pairs.jsonl"), pairs.collect::<String>()).unwrap();
    let (prompts, pairs) = (path("prompts.jsonl"), path("pairs.jsonl"));
    let sampled = ["--temperature", "1", "--max-new-tokens", "40", "--batch-size", "2"];
    let generate = [&["generate", "--prompts", arg(&prompts)][..], &sampled].concat();
    let score = vec!["score", "--data", arg(&pairs)];
    for (command, other) in [(generate, ["--seed", "1"]), (score, ["--rendering", "none"])] {
        let name = command[0];
        let (whole, out) = (path(&format!("{name}-whole.jsonl")), path(&format!("{name}.jsonl")));
        let to_whole = [&command[..], &["--model", arg(&model), "--out", arg(&whole)]].concat();
        let call = [&command[..], &["--model", arg(&model), "--out", arg(&out)]].concat();
        succeed(&to_whole);
        let part = path(&format!("{name}.jsonl.part"));
        let made = || fs::read_to_string(&part).map_or(0, |text| text.lines().count());
        let mut child = fpo(&call).spawn().unwrap();
        while made() < 6 {
            assert!(child.try_wait().unwrap().is_none(), "{name} ended before it was killed");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.exists() && made() >= 6, "{name}");
        // A row that was on its way to the disk.
        let kept = fs::read_to_string(&part).unwrap();
        fs::write(&part, kept + "{\"row\":7,\"val").unwrap();
        let refused = fail(&[&call[..], &other].concat());
        assert!(refused.contains("its rows were made with other settings"), "{refused}");
        let printed = succeed(&call);
        assert!(printed.contains("rows of an earlier call are kept"), "{printed}");
        assert!(!part.exists(), "{name}");
        assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap(), "{name}: other rows");
    }
}
