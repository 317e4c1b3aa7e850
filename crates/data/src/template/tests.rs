use super::*;

/// What Gemma-2's tokenizer_config.json says.
const GEMMA: &str = r#"{
    "bos_token": "<bos>", "eos_token": "<eos>",
    "chat_template": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
}"#;

fn gemma() -> ChatTemplate {
    ChatTemplate::from_tokenizer_config(GEMMA).unwrap().unwrap()
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns
        .iter()
        .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
        .collect()
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
            template.full_text(&prompt, "Hi & <b>!\n").unwrap(),
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
            template.map(|template| template.render(&[], false).unwrap()).as_deref(),
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
    let full = |jinja| source(jinja).full_text(&Prompt::Text("a".into()), "b").map(drop);
    let cases = [
        (config("[]"), "isn't a JSON object"),
        (config(r#"{"chat_template": 3}"#), "neither a text nor a list"),
        (config(r#"{"chat_template": [{"name": "tools", "template": ""}]}"#), "the name `default`"),
        (config(r#"{"chat_template": "{% if %}"}"#), "isn't valid Jinja"),
        (
            render(gemma(), &[("system", "x"), ("user", "y")]),
            "[system, user]: invalid operation: System role not supported",
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
    assert_eq!(raw.full_text(&text, "4").unwrap(), "2 + 2 = 4");
    let turns =
        Prompt::Messages(messages(&[("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye")]));
    assert_eq!(
        raw.full_text(&turns, "Bye!").unwrap(),
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
