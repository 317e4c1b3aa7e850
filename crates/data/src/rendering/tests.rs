use super::*;
use crate::source::{Message, OnEmpty, Pair, read_pairs};
use crate::tokenize::{PrepareError, PrepareSummary, Preparer, Truncation};
use std::path::Path;

const ROOM: Truncation = Truncation { max_length: 1000, max_prompt_length: None };
const TURN: &str = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n";

fn tokenizer() -> Tokenizer {
    Tokenizer::train_bpe(["user model Hi Yes Human Assistant"], 270).unwrap()
}

fn pair(prompt: Prompt, response: &str) -> Pair {
    Pair { id: 0, prompt, chosen: response.into(), rejected: "No".into() }
}

fn text(prompt: &str) -> Prompt {
    Prompt::Text(prompt.into())
}

fn messages() -> Prompt {
    Prompt::Messages(vec![Message::new("user", "Hi")].into())
}

/// The chosen row of a pair, decoded and split into prompt and response, and the pair's summary.
fn prepared(
    template: &TemplateChoice,
    rendering: Rendering,
    pair: Pair,
) -> ((String, String), PrepareSummary) {
    let tokenizer = tokenizer();
    let preparer = Preparer::new(&tokenizer, template, rendering, ROOM).unwrap();
    let alone = preparer.tokenize_prompt(&pair.prompt).unwrap();
    let (pairs, summary) = preparer.prepare_pairs(&[pair]).unwrap();
    let (prompt, response) = pairs[0].chosen.tokens.split_at(pairs[0].chosen.prompt_len);
    assert_eq!(alone, prompt, "generation starts from the same prompt");
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    ((decode(prompt), decode(response)), summary)
}

#[test]
fn with_a_template() {
    use Rendering::{Auto, None, Template};
    let template = TemplateChoice::Chat(ChatTemplate::plain("<bos>").unwrap());
    let turn = TURN.strip_prefix("<bos>").unwrap();
    let nested = format!("<bos><start_of_turn>user\n{turn}<end_of_turn>\n<start_of_turn>model\n")
        .replace("model\n<end", "model<end");
    // (rendering, prompt, response, the prompt's tokens as text, the response's tokens as text)
    let cases = [
        (Auto, text("Hi"), "Yes", TURN, "Yes<end_of_turn>"),
        (Template, text("Hi"), "Yes", TURN, "Yes<end_of_turn>"),
        (None, text("Hi"), "Yes", "<bos>Hi", "Yes<eos>"),
        // Texts that were already rendered, with and without BOS and an end.
        (Auto, text(TURN), "Yes", TURN, "Yes<eos>"),
        (Auto, text(turn), "Yes<end_of_turn>", TURN, "Yes<end_of_turn>"),
        (Auto, text(turn), "Yes<end_of_turn>\n", TURN, "Yes<end_of_turn>\n<eos>"),
        (Auto, text(turn), "Yes<end_of_turn><eos>", TURN, "Yes<end_of_turn><eos>"),
        (None, text(turn), "Yes<end_of_turn>\n", TURN, "Yes<end_of_turn>\n<eos>"),
        (Template, text(turn), "Yes", &nested, "Yes<end_of_turn>"),
        (Auto, text("<bos>Hi"), "Yes<eos>", "<bos>Hi", "Yes<eos>"),
        // Neither is one of the template's markers.
        (Auto, text("Hi<pad>"), "Yes", &TURN.replace("Hi", "Hi<pad>"), "Yes<end_of_turn>"),
        (Auto, text("Hi<bos>"), "Yes", &TURN.replace("Hi", "Hi<bos>"), "Yes<end_of_turn>"),
        // A response that already ends its turn.
        (Auto, text("Hi"), "Yes<end_of_turn>\n", TURN, "Yes<end_of_turn>"),
        (Auto, messages(), "Yes", TURN, "Yes<end_of_turn>"),
        (Template, messages(), "Yes", TURN, "Yes<end_of_turn>"),
        (None, messages(), "Yes", TURN, "Yes<end_of_turn>\n"),
    ];
    for (rendering, prompt, response, before, after) in cases {
        let context = format!("{rendering} {prompt:?} {response:?}");
        let templated = match (&prompt, rendering) {
            (Prompt::Text(_), None) => [0, 0, 2],
            (Prompt::Text(text), Auto) if *text != text.trim_start_matches('<') => [0, 2, 0],
            _ => [2, 0, 0],
        };
        let (halves, summary) = prepared(&template, rendering, pair(prompt, response));
        assert_eq!(halves, (before.to_owned(), after.to_owned()), "{context}");
        let PrepareSummary { templated: through, already_templated, as_given, .. } = summary;
        assert_eq!([through, already_templated, as_given], templated, "{context}");
    }
}

/// A template of plain words, as Vicuna's and Llama-2's are to a tokenizer that doesn't know their markers.
#[test]
fn a_template_without_special_tokens_is_recognised_by_its_turn() {
    let jinja = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}";
    let template = ChatTemplate::from_source(jinja, "<bos>", "").unwrap();
    let template = TemplateChoice::Chat(template);
    let turn = "USER: Hi ASSISTANT:";
    // (prompt, the prompt's tokens as text, rows that already carried the template)
    let cases = [
        ("Hi", "<bos>USER: Hi ASSISTANT:", 0),
        (turn, "<bos>USER: Hi ASSISTANT:", 2),
        (
            "USER: Hi ASSISTANT: Yes USER: Hi ASSISTANT:",
            "<bos>USER: Hi ASSISTANT: Yes USER: Hi ASSISTANT:",
            2,
        ),
        ("Who is USER: Hi", "<bos>USER: Who is USER: Hi ASSISTANT:", 0),
    ];
    for (prompt, before, already) in cases {
        let ((found, response), summary) =
            prepared(&template, Rendering::Auto, pair(text(prompt), "Yes"));
        let response_is = if already == 0 { " Yes<eos>" } else { "Yes<eos>" };
        assert_eq!((&*found, &*response), (before, response_is), "{prompt}");
        assert_eq!(summary.already_templated, already, "{prompt}");
    }
}

#[test]
fn without_a_template() {
    let dialogue = "<bos>\n\nHuman: Hi\n\nAssistant: ";
    for rendering in [Rendering::Auto, Rendering::None] {
        for (prompt, before) in
            [(text("Hi"), "<bos>Hi"), (messages(), dialogue), (text(TURN), TURN)]
        {
            let (halves, summary) = prepared(&TemplateChoice::None, rendering, pair(prompt, "Yes"));
            assert_eq!(halves, (before.to_owned(), "Yes<eos>".to_owned()), "{rendering}");
            assert_eq!((summary.templated, summary.as_given), (0, 2));
        }
    }
    let tokenizer = tokenizer();
    let refused = Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Template, ROOM);
    let error = refused.unwrap_err();
    assert!(matches!(error, PrepareError::NoTemplate), "{error}");
    assert!(error.to_string().contains("chat_template.jinja"), "{error}");
}

/// A long prompt loses content, and keeps what the template writes around it. Oracle: the template itself, on the content that is left.
#[test]
fn a_long_prompt_keeps_its_frame() {
    let tokenizer = tokenizer();
    let chat = TemplateChoice::Chat(ChatTemplate::plain("<bos>").unwrap());
    let message = |role: &str, content: &str| Message::new(role, content);
    let user = |content: &str| message("user", content);
    let model = |content: &str| message("assistant", content);
    let prompt_of = |messages: &[Message]| Prompt::Messages(messages.to_vec().into());
    let whole = |messages: &[Message]| chat.prompt_text(&prompt_of(messages)).unwrap();
    let system = message("system", "qrstuvwx");
    // (prompt, what is left of it)
    let cases = vec![
        (text("abcdefgh"), vec![user("fgh")]),
        (text("  abcdefgh "), vec![user("fgh")]),
        (prompt_of(&[user("abcdefgh")]), vec![user("fgh")]),
        // The text of the frame inside the content.
        (prompt_of(&[user("user\nuser\n")]), vec![user("r\n")]),
        (
            prompt_of(&[user("abc"), model("def"), user("ghi")]),
            vec![user(""), model("ef"), user("ghi")],
        ),
        (prompt_of(&[user("abc"), model("def"), user("ghi")]), vec![user("ghi")]),
        (prompt_of(&[user("abc"), model("def"), user("ghi")]), vec![user("hi")]),
        (
            prompt_of(&[user("a"), model("b"), user("c"), model("d"), user("efg")]),
            vec![user("c"), model("d"), user("efg")],
        ),
        (
            prompt_of(&[system.clone(), user("ab"), model("cd"), user("ef")]),
            vec![system.clone(), user("f")],
        ),
        (prompt_of(&[system.clone(), user("ef")]), vec![message("system", "stuvwx"), user("")]),
    ];
    // The same as texts that carry the template already.
    let templated = |(prompt, left): &(Prompt, Vec<Message>)| match prompt {
        Prompt::Messages(conversation) if conversation.messages[0].role() == "user" => {
            Some((text(&whole(&conversation.messages)), left.clone()))
        }
        _ => None,
    };
    let templated: Vec<_> = cases.iter().filter_map(templated).collect();
    let of = |rendering, cases: Vec<_>| cases.into_iter().map(move |case| (rendering, case));
    let cases = of(Rendering::Auto, cases);
    let cases = cases.chain(of(Rendering::Auto, templated.clone()));
    for (rendering, (prompt, left)) in cases.chain(of(Rendering::None, templated)) {
        let expected = tokenizer.encode(&whole(&left)).unwrap().ids;
        let limits = Truncation { max_length: 1000, max_prompt_length: Some(expected.len()) };
        let preparer = Preparer::new(&tokenizer, &chat, rendering, limits).unwrap();
        let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
        let alone = preparer.tokenize_prompt(&prompt).unwrap();
        assert_eq!(decode(&alone), decode(&expected), "{rendering} {prompt:?}");
        let (pairs, summary) = preparer.prepare_pairs(&[pair(prompt, "Yes")]).unwrap();
        for row in [&pairs[0].chosen, &pairs[0].rejected] {
            assert_eq!(decode(&row.tokens[..row.prompt_len]), decode(&expected));
        }
        assert_eq!((summary.clipped_prompts, summary.clipped_responses), (1, 0));
    }
    // No room for the frame: nothing is left to ask.
    let limits = Truncation { max_length: 1000, max_prompt_length: Some(4) };
    let preparer = Preparer::new(&tokenizer, &chat, Rendering::Auto, limits).unwrap();
    assert_eq!(preparer.tokenize_pair(&pair(text("Hi"), "Yes")).unwrap(), None);
}

#[test]
fn a_long_dialogue_keeps_its_speakers() {
    let tokenizer = tokenizer();
    let message = |role: &str, content: &str| Message::new(role, content);
    let turns = ["user", "assistant", "user"].map(|role| message(role, "abcdef"));
    for left in [
        "<bos>\n\nHuman: cdef\n\nAssistant: abcdef\n\nHuman: abcdef\n\nAssistant: ",
        "<bos>\n\nHuman: bcdef\n\nAssistant: ",
    ] {
        let expected = tokenizer.encode(left).unwrap().ids;
        let limits = Truncation { max_length: 1000, max_prompt_length: Some(expected.len()) };
        let preparer =
            Preparer::new(&tokenizer, &TemplateChoice::None, Rendering::Auto, limits).unwrap();
        let found = preparer.tokenize_prompt(&Prompt::Messages(turns.to_vec().into())).unwrap();
        assert_eq!(tokenizer.decode(&found, false).unwrap(), left);
    }
}

#[test]
fn names_round_trip() {
    for (name, rendering) in RENDERINGS {
        assert_eq!((name.parse(), rendering.to_string()), (Ok(rendering), name.to_owned()));
        assert_eq!(serde_json::to_value(rendering).unwrap(), name);
    }
    let error = "chat".parse::<Rendering>().unwrap_err();
    assert!(error.contains("`chat`") && error.contains("auto, template or none"), "{error}");
}

/// Pairs as in many public sets: texts already rendered with Gemma's template. Oracle: TRL's rule for plain text.
#[test]
fn a_rendered_set_is_not_rendered_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/score/chat");
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let template = TemplateChoice::from(tokenizer.chat_template().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("pairs.jsonl");
    let prompt = "<bos><start_of_turn>user\\nthe price<end_of_turn>\\n<start_of_turn>model\\n";
    let [chosen, rejected] = ["one", "two"].map(|answer| format!("{answer}<end_of_turn>\\n"));
    let row =
        format!(r#"{{"prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"}}"#);
    std::fs::write(&data, row).unwrap();
    let (pairs, _) = read_pairs(&data, OnEmpty::Refuse).unwrap();
    let turns = "<bos><start_of_turn>user\nthe price<end_of_turn>\n<start_of_turn>model\n";
    for rendering in [Rendering::Auto, Rendering::None] {
        let preparer = Preparer::new(&tokenizer, &template, rendering, ROOM).unwrap();
        let pair = preparer.tokenize_pair(&pairs[0]).unwrap().unwrap();
        for (row, response) in [(&pair.chosen, "one"), (&pair.rejected, "two")] {
            let whole = format!("{turns}{response}<end_of_turn>\n<eos>");
            assert_eq!(row.tokens, tokenizer.encode(&whole).unwrap().ids, "{rendering}");
            assert_eq!(row.tokens[..2], [2, 4], "{rendering}");
            assert_eq!(row.tokens.last(), Some(&1));
            assert_eq!(tokenizer.decode(&row.tokens[..row.prompt_len], false).unwrap(), turns);
        }
    }
}
