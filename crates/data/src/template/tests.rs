use super::*;

/// What Gemma-2's tokenizer_config.json says.
const GEMMA: &str = r#"{
    "bos_token": "<bos>", "eos_token": "<eos>",
    "chat_template": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
}"#;

fn gemma() -> ChatTemplate {
    ChatTemplate::from_tokenizer_config(GEMMA).unwrap().unwrap()
}

fn messages(turns: &[(&str, &str)]) -> Conversation {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content));
    messages.collect::<Vec<_>>().into()
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| text + ": " + &cause.to_string())
}

#[test]
fn gemma_and_plain_write_the_same_turns() {
    for template in [gemma(), ChatTemplate::plain("<bos>").unwrap()] {
        let prompt = Prompt::Text(" Hello? ".into());
        let before = "<bos><start_of_turn>user\nHello?<end_of_turn>\n<start_of_turn>model\n";
        assert_eq!(template.prompt_text(&prompt).unwrap(), before);
        assert_eq!(
            template.full_text(&prompt, &"Hi & <b>!\n".into()).unwrap(),
            format!("{before}Hi & <b>!<end_of_turn>")
        );

        let turns = messages(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
        let conversation = template.prompt_text(&Prompt::Messages(turns)).unwrap();
        assert_eq!(
            conversation,
            "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n\
             <start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"
        );
        assert_eq!(conversation.matches("<bos>").count(), 1);
    }
}

#[test]
fn rendering_follows_hugging_face() {
    let turns = messages(&[("user", "  x y  "), ("assistant", "z")]);
    let cases = [
        // trim_blocks removes the newline after a block, lstrip_blocks the white space before it.
        (
            "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
            "user\nassistant\n",
        ),
        ("{{ messages[0]['content'].strip() }}|{{ messages[1].content.upper() }}", "x y|Z"),
        ("{{ messages[0].content.split()[1] }}{{ messages[0].content.startswith(' ') }}", "yTrue"),
        (
            "{% for m in messages %}{% if loop.first %}F{% endif %}{% if loop.last %}L{% endif %}{% endfor %}",
            "FL",
        ),
        ("{% if tools is not none %}tools{% endif %}{% if documents %}docs{% endif %}none", "none"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
            "z",
        ),
        ("{{ messages[:-1] | length }}{{ eos_token }}", "1</s>"),
        ("{%- for m in messages -%}  {{ m.role }}  {%- endfor -%}", "userassistant"),
    ];
    for (jinja, expected) in cases {
        let template = ChatTemplate::from_source(jinja, "<s>", "</s>").unwrap();
        assert_eq!(template.render(&turns, false).unwrap(), expected, "{jinja}");
    }
}

#[test]
fn templates_are_strings_or_named_lists() {
    let cases = [
        (r#"{}"#, None),
        (r#"{"chat_template": null}"#, None),
        (
            r#"{"chat_template": "A{{ bos_token }}", "bos_token": {"content": "<s>", "lstrip": false}}"#,
            Some("A<s>"),
        ),
        (
            r#"{"chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]}"#,
            Some("D"),
        ),
    ];
    for (config, expected) in cases {
        let template = ChatTemplate::from_tokenizer_config(config).unwrap();
        assert_eq!(
            template.map(|template| template.render(&messages(&[]), false).unwrap()).as_deref(),
            expected,
            "{config}"
        );
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let config = |config: &str| ChatTemplate::from_tokenizer_config(config).map(drop);
    let render = |template: ChatTemplate, turns: &[(&str, &str)]| {
        template.render(&messages(turns), true).map(drop)
    };
    let source = |jinja| ChatTemplate::from_source(jinja, "", "").unwrap();
    let full = |jinja| source(jinja).full_text(&Prompt::Text("a".into()), &"b".into()).map(drop);
    let cases = [
        (config("[]"), "isn't a JSON object"),
        (config(r#"{"chat_template": 3}"#), "neither a text nor a list"),
        (config(r#"{"chat_template": [{"name": "tools", "template": ""}]}"#), "the name `default`"),
        (config(r#"{"chat_template": "{% if %}"}"#), "isn't valid Jinja"),
        (
            render(gemma(), &[("system", "x"), ("user", "y")]),
            "set data.system = \"fold\" (--system fold): invalid operation: System role not supported",
        ),
        (render(gemma(), &[("user", "x"), ("user", "y")]), "Conversation roles must alternate"),
        (
            render(
                source(
                    "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
                ),
                &[],
            ),
            "fuel",
        ),
        (full("{{ messages | length }}{{ messages[0].content }}"), "writes a prompt differently"),
    ];
    for (result, expected) in cases {
        let error = chain(&result.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn without_a_template_texts_are_concatenated() {
    let raw = TemplateChoice::None;
    let text = Prompt::Text("2 + 2 = ".into());
    assert_eq!(raw.full_text(&text, &"4".into()).unwrap(), "2 + 2 = 4");
    let turns =
        Prompt::Messages(messages(&[("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye")]));
    assert_eq!(
        raw.full_text(&turns, &"Bye!".into()).unwrap(),
        "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant: Bye!"
    );
}

#[test]
fn the_hash_tells_templates_apart() {
    let hashes = [
        TemplateChoice::None.hash(),
        TemplateChoice::Chat(gemma()).hash(),
        TemplateChoice::Chat(ChatTemplate::plain("<bos>").unwrap()).hash(),
        TemplateChoice::Chat(ChatTemplate::plain("<s>").unwrap()).hash(),
    ];
    assert_eq!(hashes.iter().collect::<std::collections::BTreeSet<_>>().len(), hashes.len());
}

/// A line of a fixture of `tests/fixtures/templates`.
fn fixture(name: &str) -> Vec<Value> {
    let folder = std::env::var("FPO_TEMPLATES").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/templates").to_owned()
    });
    let text = std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    if name.ends_with(".jinja") {
        return vec![Value::String(text)];
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A conversation of the fixture, as a row of a file.
fn conversation_of(row: &Value) -> Conversation {
    let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
    let variables = row["variables"].as_object().cloned().unwrap_or_default();
    Conversation { messages, tools: row.get("tools").cloned(), variables }
}

/// The day of the recordings, as today's.
fn today(recorded: &str) -> String {
    let day = chrono::Local::now();
    let [recorded_day, recorded_short] = ["2001-02-03", "03 Feb 2001"];
    recorded
        .replace(
            "2001-02-03 03 Feb 2001 February Saturday 034",
            &day.format("%Y-%m-%d %d %b %Y %B %A %j").to_string(),
        )
        .replace(recorded_day, &day.format("%Y-%m-%d").to_string())
        .replace(recorded_short, &day.format("%d %b %Y").to_string())
}

/// Oracle: transformers 5.24, recorded.
#[test]
fn templates_of_the_field_render_as_in_transformers() {
    let conversations: Vec<_> =
        fixture("conversations.jsonl").iter().map(conversation_of).collect();
    let mut wrong = Vec::new();
    for line in fixture("rendered.jsonl") {
        let name = line["template"].as_str().unwrap();
        let jinja = fixture(&format!("{name}.jinja"));
        let template =
            ChatTemplate::from_source(jinja[0].as_str().unwrap(), "<bos>", "<eos>").unwrap();
        let conversation = &conversations[line["conversation"].as_u64().unwrap() as usize];
        let found = match line["generation_prompt"].as_bool().unwrap() {
            true => template.render(conversation, true).map(|text| (text, None)),
            false => template.render_marked(conversation),
        };
        let expected = line["text"].as_str().map(today);
        let same = match (&found, &expected) {
            (Ok((text, ranges)), Some(expected)) => {
                let marked = ranges.as_ref().map(|ranges| {
                    ranges.iter().map(|range| &text[range.clone()]).collect::<Vec<_>>()
                });
                text == expected
                    && (line.get("marked").is_none() || serde_json::json!(marked) == line["marked"])
            }
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            wrong.push(format!("{line}\nfound {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{} differ", wrong.join("\n"), wrong.len());
}

/// Oracle: transformers 5.24, recorded.
#[test]
fn expressions_of_python_are_understood() {
    let mut conversation = messages(&[("user", "a")]);
    conversation.variables.insert("v".to_owned(), fixture("value.json")[0].clone());
    let mut wrong = Vec::new();
    for line in fixture("python.jsonl") {
        let template = ChatTemplate::from_source(line["jinja"].as_str().unwrap(), "", "");
        let found = template.and_then(|template| template.render(&conversation, false));
        let expected = line["text"].as_str().map(today);
        if found.as_ref().ok() != expected.as_ref() {
            wrong.push(format!("{line}\nfound {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{} differ", wrong.join("\n"), wrong.len());
}

#[test]
fn a_system_message_can_be_folded_into_the_first_user_turn() {
    let conversation =
        messages(&[("system", "Be brief.\n"), ("user", " Hi"), ("assistant", "Ho"), ("user", "?")]);
    let error = chain(&gemma().render(&conversation, true).unwrap_err());
    assert!(error.contains("data.system = \"fold\"") && error.contains("not supported"), "{error}");
    let TemplateChoice::Chat(fold) = TemplateChoice::Chat(gemma()).with_system(System::Fold) else {
        panic!()
    };
    // The oracle is the template itself on the messages by hand.
    let by_hand = messages(&[("user", "Be brief.\n\n Hi"), ("assistant", "Ho"), ("user", "?")]);
    assert_eq!(fold.render(&conversation, true).unwrap(), gemma().render(&by_hand, true).unwrap());
    assert_eq!(fold.render(&by_hand, true).unwrap(), gemma().render(&by_hand, true).unwrap());
    let parts = serde_json::json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]});
    let spelled = ChatTemplate::from_source("{{ messages | tojson }}", "", "").unwrap();
    let TemplateChoice::Chat(spelled) = TemplateChoice::Chat(spelled).with_system(System::Fold)
    else {
        panic!()
    };
    assert_eq!(
        spelled.render(&conversation_of(&parts), false).unwrap(),
        r#"[{"role": "user", "content": [{"type": "text", "text": "s\n\n"}, {"type": "text", "text": "q"}]}]"#
    );
    // Nothing to fold into, or an error of another kind.
    for turns in [
        &[("system", "s")][..],
        &[("system", "s"), ("assistant", "a")],
        &[("system", "s"), ("user", "a"), ("user", "b")],
    ] {
        let error = chain(&gemma().render(&messages(turns), false).unwrap_err());
        assert!(error.contains("rejected a conversation with the roles"), "{error}");
    }
    assert_ne!(TemplateChoice::Chat(fold).hash(), TemplateChoice::Chat(gemma()).hash());
    for system in [System::Keep, System::Fold] {
        assert_eq!(system.to_string().parse(), Ok(system));
    }
    assert!("drop".parse::<System>().is_err());
}

/// Texts with the marks' own characters, a template that measures what it marks, and tags in other places.
#[test]
fn marks_are_exact_or_absent() {
    let marked = |jinja: &str, content: &str| {
        let template = ChatTemplate::from_source(jinja, "", "").unwrap();
        template.render_marked(&messages(&[("assistant", content)])).unwrap()
    };
    let simple = "a{%- generation -%} {{ messages[0].content }} {%- endgeneration -%} b{% generation %}{% endgeneration %}";
    assert_eq!(marked(simple, "é"), ("aéb".to_owned(), Some(vec![1..3, 4..4])));
    let odd = "\u{fdd0}\u{fdd1}";
    assert_eq!(marked(simple, odd), (format!("a{odd}b"), Some(vec![1..7, 8..8])));
    let measuring = "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x | length }}";
    assert_eq!(marked(measuring, "é"), ("1".to_owned(), None));
    assert_eq!(marked("{{ messages[0].content }}{# generation #}", "é"), ("é".to_owned(), None));
    assert!(ChatTemplate::from_source("{% generation %}", "", "").is_err());
}
