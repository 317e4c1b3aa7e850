//! The tokenizers of the families, with their own templates, beginnings and ends.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::*;

/// Token ids of what a template writes: `alone` by `apply_chat_template`, `as_text` by the tokenizer on the rendered text.
#[derive(Deserialize)]
struct Rendered {
    alone: Vec<u32>,
    as_text: Vec<u32>,
}

#[derive(Deserialize)]
struct Recorded {
    bos: Option<u32>,
    eos: u32,
    pad: Option<u32>,
    /// What `generation_config.json` ends a generation with.
    ends: BTreeSet<u32>,
    texts: Vec<Text>,
    conversations: Vec<Turns>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Turns {
    messages: Vec<Message>,
    prompt: Rendered,
    whole: Rendered,
}

/// Oracle: transformers 5.24. A row has the BOS that the tokenizer puts before a text, once.
#[test]
fn families_begin_and_end_as_in_transformers() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tokenizers"));
    let recorded = std::fs::read_to_string(folder.join("recorded.json")).unwrap();
    let recorded: BTreeMap<String, Recorded> = serde_json::from_str(&recorded).unwrap();
    assert_eq!(recorded.len(), 11);
    for (name, found) in recorded {
        let tokenizer = Tokenizer::load(&folder.join(&name)).unwrap();
        let template = TemplateChoice::from(tokenizer.chat_template().unwrap());
        let preparer = Preparer::new(&tokenizer, &template, Rendering::Auto, ROOM).unwrap();
        for Text { text, ids } in found.texts {
            assert_eq!(preparer.tokenize_text(&text).unwrap(), ids, "{name}: {text:?}");
        }
        let special = [found.bos, Some(found.eos), found.pad];
        assert_eq!([tokenizer.bos_id(), tokenizer.eos_id()], special[..2], "{name}");
        let expected: BTreeSet<u32> = special.into_iter().flatten().collect();
        assert_eq!(BTreeSet::from_iter(tokenizer.special_ids()), expected, "{name}");

        for Turns { messages, prompt, whole } in found.conversations {
            let once = |Rendered { alone, as_text }: Rendered| {
                let doubled = found.bos.is_some() && as_text.starts_with(&[found.bos.unwrap(); 2]);
                let ids = as_text[usize::from(doubled)..].to_vec();
                // Only where a template leaves out the BOS that its tokenizer adds do the two ways of transformers differ.
                assert_eq!(ids == alone, name != "chatml_on_llama", "{name}");
                ids
            };
            let (last, before) = messages.split_last().unwrap();
            let example = SftExample {
                id: 0,
                prompt: Prompt::Messages(before.to_vec().into()),
                response: (&*last.text()).into(),
            };
            assert_eq!(preparer.tokenize_prompt(&example.prompt).unwrap(), once(prompt), "{name}");
            let row = preparer.tokenize_example(&example).unwrap().unwrap().response.tokens;
            let whole = once(whole);
            assert!(whole.starts_with(&row), "{name}: {row:?} and {whole:?}");
            // What follows the end of a turn is white space, and isn't learned.
            let rest = tokenizer.decode(&whole[row.len()..], false).unwrap();
            assert_eq!(rest.trim(), "", "{name}");
            let end = row.last().unwrap();
            assert!(tokenizer.stop_ids().contains(end), "{name}: ends with {end}");
            // Qwen's base model has the template, but ends texts only.
            assert_eq!(found.ends.contains(end), name != "qwen2_base", "{name}");
        }
    }
}
