//! Rows as people bring them, through the program: tool calls, conversations that part early, folders of splits, rows that can't be used.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    common::{arg, fail, succeed},
    score::{fixture, json_lines},
};

/// The model of `score/chat` with another chat template and more positions, in a folder of its own.
fn with_template(folder: &Path, template: &str) {
    for entry in fs::read_dir(fixture("score/chat")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let longer =
        config.replace("\"max_position_embeddings\": 160", "\"max_position_embeddings\": 512");
    assert_ne!(longer, config);
    fs::write(folder.join("config.json"), longer).unwrap();
}

/// Oracle: transformers with TRL's boundary, recorded in `tests/fixtures/rows`.
#[test]
fn tool_calls_and_parting_conversations_are_scored_as_in_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let (model, rows) = (folder.path(), fixture("rows"));
    let template = fs::read_to_string(rows.join("model/chat_template.jinja")).unwrap();
    with_template(model, &template);
    let (data, out) = (rows.join("pairs.jsonl"), folder.path().join("out.jsonl"));
    let files = ["--model", arg(model), "--data", arg(&data), "--out", arg(&out)];
    succeed(&[&["score", "--rendering", "none"], &files[..]].concat());
    let (ours, theirs) = (json_lines(&out), json_lines(&rows.join("scores.jsonl")));
    assert_eq!(ours.len(), theirs.len());
    for (row, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        for side in ["chosen", "rejected"] {
            let (tokens, log_prob) = (format!("{side}_tokens"), format!("{side}_log_prob"));
            assert_eq!(ours[&tokens], theirs[&tokens], "row {row}");
            let [ours, theirs] = [ours, theirs].map(|row| row[&log_prob].as_f64().unwrap());
            let difference = (ours - theirs).abs() / theirs.abs();
            assert!(difference < 1e-5, "row {row}, {side}: {ours}, not {theirs}");
        }
    }
}

/// Oracle: the same pairs with the system message in the user's turn by hand.
#[test]
fn a_refused_system_message_names_the_option_that_folds_it() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
         {% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}\
         {% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}";
    with_template(folder.path(), refusing);
    let [data, out] = ["pairs.jsonl", "scores.jsonl"].map(|name| folder.path().join(name));
    let files = ["--model", arg(folder.path()), "--data", arg(&data), "--out", arg(&out)];
    let write = |messages: Value| {
        let row = json!({"prompt": messages, "chosen": "yes", "rejected": "no"});
        fs::write(&data, row.to_string()).unwrap();
    };
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    write(json!([message("system", "Be brief."), message("user", "Hi")]));
    let refused = fail(&[&["score"], &files[..]].concat());
    assert!(refused.contains("--system fold") && refused.contains("no system"), "{refused}");
    succeed(&[&["score", "--system", "fold"], &files[..]].concat());
    let folded = json_lines(&out);
    write(json!([message("user", "Be brief.\n\nHi")]));
    succeed(&[&["score"], &files[..]].concat());
    assert_eq!(folded, json_lines(&out));
}

/// Oracle: `fpo score` of each turn as a response of its own; the first loss of fine-tuning is their mean.
#[test]
fn fine_tuning_teaches_all_turns_that_a_template_marks() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (folder.path().join("model"), |name: &str| folder.path().join(name));
    fs::create_dir(&model).unwrap();
    let marked = "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' ~ m.role ~ '\n' }}{% if m.role == 'assistant' %}\
         {% generation %}{{ m.content ~ '<end_of_turn>' }}{% endgeneration %}{% else %}{{ m.content ~ '<end_of_turn>' }}{% endif %}\
         {{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}";
    with_template(&model, marked);
    let message = |role: &str, content: String| json!({"role": role, "content": content});
    let turns = |row: usize| -> [Value; 4] {
        [("user", "Say it"), ("assistant", "one two"), ("user", "Again"), ("assistant", "six")]
            .map(|(role, text)| message(role, text.repeat(1 + row)))
    };
    let write = |name: &str, rows: Vec<Value>| {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(file(name), lines).unwrap();
    };
    let pair = |prompt: &[Value], answer: &Value| {
        let rejected = [message("assistant", "no".to_owned())];
        json!({"prompt": prompt, "chosen": [answer], "rejected": rejected})
    };
    write("examples.jsonl", (0..3).map(|row| json!({"messages": turns(row)})).collect());
    let of_row =
        |row| (pair(&turns(row)[..1], &turns(row)[1]), pair(&turns(row)[..3], &turns(row)[3]));
    let (first, last): (Vec<Value>, Vec<Value>) = (0..3).map(of_row).unzip();
    write("pairs.jsonl", [first, last].concat());
    let (pairs, scores) = (file("pairs.jsonl"), file("scores.jsonl"));
    succeed(&["score", "--model", arg(&model), "--data", arg(&pairs), "--out", arg(&scores)]);
    let scores = json_lines(&scores);
    let mean = |rows: &[Value]| {
        let sum = |key: &str| rows.iter().map(|row| row[key].as_f64().unwrap()).sum::<f64>();
        -sum("chosen_log_prob") / sum("chosen_tokens")
    };

    let settings =
        [("model.path", &model), ("data.train", &pairs), ("data.sft", &file("examples.jsonl"))]
            .map(|(key, path)| format!("{key}={}", path.display()));
    for (turns, expected) in
        [(None, mean(&scores)), (Some("all"), mean(&scores)), (Some("last"), mean(&scores[3..]))]
    {
        let run = file(turns.unwrap_or("default"));
        let set = turns.map(|turns| format!("sft.turns={turns}"));
        let set = settings.iter().chain(&set).map(String::as_str);
        let fixed = [
            "align.method=dpo",
            "data.max_length=256",
            "data.max_prompt_length=200",
            "data.hold_out=0.4",
        ];
        let set = set.chain(fixed).flat_map(|setting| ["--set", setting]);
        let train = ["train", "--recipe", "smoke", "--run", arg(&run)];
        succeed(&train.into_iter().chain(set).collect::<Vec<_>>());
        let step = &json_lines(&run.join("sft/metrics.jsonl"))[0];
        let loss = step["loss"].as_f64().unwrap();
        assert!((loss / expected - 1.0).abs() < 1e-5, "{turns:?}: {loss}, not {expected}");
        assert!(run.join("report.html").is_file());
    }
}

#[test]
fn a_folder_is_trained_on_its_training_split_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("set");
    fs::create_dir_all(data.join("data")).unwrap();
    fs::write(data.join("dataset_infos.json"), "{}").unwrap();
    let row = |index: usize| {
        json!({
            "conversations": [{"from": "human", "value": format!("Say {index}.")}],
            "chosen": {"from": "gpt", "value": format!("{index}")},
            "rejected": {"from": "gpt", "value": "No."},
            "score": 0,
        })
        .to_string()
        .replace(":0}", ":NaN}")
    };
    let rows: Vec<String> = (0..60).map(row).collect();
    let train = data.join("data/train-00000-of-00001.json");
    let bad = r#"{"chosen": [{"role": "user", "content": "q"}], "rejected": []}"#;
    fs::write(&train, format!("[{},\n{bad}]", rows[..50].join(",\n"))).unwrap();
    fs::write(data.join("data/test-00000-of-00001.jsonl"), rows[50..].join("\n")).unwrap();

    let run = folder.path().join("run");
    let path = format!("data.train={}", data.display());
    let train =
        ["train", "--recipe", "smoke", "--run", arg(&run), "--set", &path, "--until", "prepare"];
    let refused = fail(&train);
    for part in ["train-00000-of-00001.json: row 50", "data.on_error = \"skip\""] {
        assert!(refused.contains(part), "{refused}");
    }
    let printed = succeed(&[&train[..], &["--set", "data.on_error=skip"]].concat());
    for part in ["the split train", "1 of 51 rows can't be used"] {
        assert!(printed.contains(part), "{printed}");
    }
    let summary = fs::read_to_string(run.join("prepared/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["source"]["skipped"], 1);
    assert_eq!((&summary["train"]["read"], &summary["held_out"]["read"]), (&json!(50), &json!(10)));
}
