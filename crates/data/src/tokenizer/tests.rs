use super::*;
use crate::testing::cases;
use proptest::prelude::*;
use std::sync::OnceLock;

static SMALL: OnceLock<Tokenizer> = OnceLock::new();

const TEXTS: [&str; 4] = [
    "the cat sat on the mat and the cat ate the rat in 2024",
    "a preference pair has a prompt and two responses",
    "the prompt is what the two responses answer: 12 + 34 = 46",
    "äöü — ✓ 你好",
];

fn small() -> Tokenizer {
    Tokenizer::train_bpe(TEXTS, 300).unwrap()
}

#[test]
fn special_tokens_have_gemmas_ids() {
    let tokenizer = small();
    for (id, token) in SPECIAL_TOKENS.iter().enumerate() {
        assert_eq!(tokenizer.token_id(token), Some(id as u32));
    }
    assert_eq!(
        (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.bos_id(), tokenizer.end_of_turn_id()),
        (0, Some(1), Some(2), Some(5))
    );
    assert_eq!(tokenizer.stop_ids(), [5, 1]);
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.bos_token(), "<bos>");
    assert_eq!(tokenizer.vocab_size(), 291, "the texts have no more pairs that occur twice");
}

#[test]
fn tokens_beyond_a_models_table_are_refused() {
    let text = "the cat";
    let highest = *small().encode(text).unwrap().ids.iter().max().unwrap() as usize;
    let fits = small().for_table(highest + 1).unwrap();
    assert_eq!(fits.encode(text).unwrap(), small().encode(text).unwrap());
    let short = small().for_table(highest).unwrap();
    let error = short.encode(text).unwrap_err();
    assert!(
        matches!(error, TokenizerError::Beyond { id, .. } if id as usize == highest),
        "{error}"
    );
    // BOS, EOS and padding are used with every text.
    assert!(small().for_table(3).is_ok());
    assert!(small().for_table(2).unwrap_err().to_string().contains("<bos>"));
}

#[test]
fn texts_round_trip_and_offsets_locate_tokens() {
    let tokenizer = small();
    for text in TEXTS.into_iter().chain([
        "",
        " ",
        "  two  spaces \n\n",
        "unseen: ßø🦀",
        "<bos>x<end_of_turn>\n",
    ]) {
        let Encoding { ids, offsets } = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        assert!(offsets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{text}: {offsets:?}");
        assert_eq!(offsets.last().map_or(0, |last| last.1), text.len());
    }
    assert_eq!(
        tokenizer.encode("<bos>a<eos>").unwrap().ids[0],
        2,
        "special tokens become themselves"
    );
    assert_eq!(tokenizer.encode("a").unwrap().ids.len(), 1, "nothing is added");
    assert_eq!(tokenizer.decode(&[2, 5], true).unwrap(), "");
}

#[test]
fn every_digit_is_a_token() {
    let tokenizer = Tokenizer::train_bpe(["2024 2024 2024 2024 year 2024"; 20], 400).unwrap();
    let ids = tokenizer.encode("2024").unwrap().ids;
    assert_eq!(ids.len(), 4);
    assert_eq!(ids[0], ids[2]);
}

#[test]
fn training_is_deterministic() {
    let texts: Vec<String> = (0..3000)
        .map(|i| format!("item {i} of {} things, {:x} and {:o}", i % 7, i * 31, i * 17))
        .collect();
    let train_to = |size| Tokenizer::train_bpe(texts.iter().map(String::as_str), size).unwrap();
    let train = || train_to(350);
    let first = train();
    for _ in 0..8 {
        let again = train();
        assert_eq!(again.hash(), first.hash());
        assert_eq!(again.inner.to_string(true).unwrap(), first.inner.to_string(true).unwrap());
    }
    assert_eq!(first.vocab_size(), 350);
    assert_ne!(train_to(349).hash(), first.hash());
}

#[test]
fn save_and_load_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small();
    tokenizer.save(folder.path()).unwrap();
    let loaded = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(loaded.hash(), tokenizer.hash());
    assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
    assert_eq!(loaded.encode(TEXTS[0]).unwrap(), tokenizer.encode(TEXTS[0]).unwrap());
    assert_eq!(loaded.chat_template().unwrap().unwrap().source(), PLAIN_SOURCE);

    // The separate file takes precedence, as in transformers.
    std::fs::write(folder.path().join("chat_template.jinja"), "other").unwrap();
    assert_eq!(
        Tokenizer::load(folder.path()).unwrap().chat_template().unwrap().unwrap().source(),
        "other"
    );
}

const PLAIN_SOURCE: &str = crate::template::PLAIN;

fn with_config(config: &str) -> Result<Tokenizer, TokenizerError> {
    let json = small().inner.to_string(false).unwrap();
    Tokenizer::from_json(json.as_bytes(), serde_json::from_str(config).unwrap())
}

#[test]
fn special_tokens_come_from_the_configuration_or_known_names() {
    let cases = [
        ("{}", Some(2), Some(1), 0, true),
        (r#"{"bos_token": null}"#, None, Some(1), 0, false),
        (
            r#"{"bos_token": {"content": "<unk>"}, "add_bos_token": false}"#,
            Some(3),
            Some(1),
            0,
            false,
        ),
        (r#"{"eos_token": "<end_of_turn>", "pad_token": null}"#, Some(2), Some(5), 5, true),
        (r#"{"eos_token": null, "pad_token": null}"#, Some(2), None, 0, true),
    ];
    for (config, bos, eos, pad, adds_bos) in cases {
        let tokenizer = with_config(config).unwrap();
        let found =
            (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.adds_bos());
        assert_eq!(found, (bos, eos, pad, adds_bos), "{config}");
    }
}

/// As in the files of SmolLM2 and Qwen: a BOS by name, and nothing that puts it before a text.
#[test]
fn bos_begins_a_text_only_where_the_tokenizer_puts_it() {
    let mut json: Value = serde_json::from_str(&small().inner.to_string(false).unwrap()).unwrap();
    json["post_processor"] = Value::Null;
    for (config, adds_bos) in [
        ("{}", false),
        (r#"{"bos_token": "<bos>"}"#, false),
        (r#"{"bos_token": "<bos>", "add_bos_token": true}"#, true),
        (r#"{"bos_token": null, "add_bos_token": true}"#, false),
    ] {
        let config = serde_json::from_str(config).unwrap();
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), config).unwrap();
        assert_eq!(tokenizer.adds_bos(), adds_bos);
    }
}

#[test]
fn special_ids_are_bos_eos_and_declared_padding() {
    let cases = [
        ("{}", &[2, 1, 0][..]),
        (r#"{"pad_token": "<eos>"}"#, &[2, 1]),
        // Id 0, which pads where nothing is declared, may well be a word.
        (r#"{"pad_token": null}"#, &[2, 1]),
        (r#"{"bos_token": null, "eos_token": "<end_of_turn>"}"#, &[5, 0]),
    ];
    for (config, ids) in cases {
        assert_eq!(with_config(config).unwrap().special_ids(), ids, "{config}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || Tokenizer::load(folder.path()).map(drop).unwrap_err().to_string();
    assert!(load().contains("tokenizer.json: can't be read"));
    write("tokenizer.json", "{}");
    assert!(load().contains("isn't a tokenizer"));
    small().save(folder.path()).unwrap();
    write("tokenizer_config.json", "[1]");
    assert!(load().contains("isn't a JSON object"));
    write("tokenizer_config.json", r#"{"bos_token": "<nope>"}"#);
    assert!(load().contains("`bos_token` is \"<nope>\""));

    let error = Tokenizer::train_bpe(TEXTS, 261).unwrap_err().to_string();
    assert!(error.contains("261") && error.contains("262"), "{error}");
    assert_eq!(Tokenizer::train_bpe([], 262).unwrap().vocab_size(), 262);
}

#[test]
fn limits_saved_with_a_tokenizer_are_ignored() {
    let mut json: Value = serde_json::from_str(&small().inner.to_string(false).unwrap()).unwrap();
    json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Map::new()).unwrap();
    assert_eq!(tokenizer.encode(TEXTS[0]).unwrap(), small().encode(TEXTS[0]).unwrap());
    assert_eq!(tokenizer.hash(), with_config("{}").unwrap().hash());
}

/// Oracle: the whole text decoded in one call.
#[test]
fn a_stream_returns_whole_characters_only() {
    let tokenizer = Tokenizer::train_bpe(["plain words"], 280).unwrap();
    for text in ["plain", "naïve 東京 🗼!", "ends in half a tower", ""] {
        let mut ids = tokenizer.encode(text).unwrap().ids;
        if text.starts_with("ends") {
            let tower = tokenizer.encode("🗼").unwrap().ids;
            assert!(tower.len() > 1, "the test needs a character of several tokens");
            ids.extend(&tower[..tower.len() - 1]);
        }
        let mut stream = tokenizer.text_stream();
        let mut told = Vec::new();
        for &id in &ids {
            told.push(stream.push(id).unwrap());
        }
        assert!(told.iter().all(|piece| !piece.contains('\u{FFFD}')), "{told:?}");
        assert!(told.len() < 2 || told.iter().filter(|piece| !piece.is_empty()).count() > 1);
        let whole = told.concat() + &stream.finish().unwrap();
        assert_eq!(whole, tokenizer.decode(&ids, true).unwrap());
    }
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn any_text_round_trips(text in any::<String>()) {
        let tokenizer = SMALL.get_or_init(small);
        let Encoding { ids, offsets } = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.clone());
        prop_assert!(offsets.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        prop_assert_eq!(offsets.last().map_or(0, |last| last.1), text.len());
    }

    /// Oracle: all tokens decoded in one call.
    #[test]
    fn a_stream_returns_what_decoding_returns(ids in prop::collection::vec(0u32..291, 0..40)) {
        let tokenizer = SMALL.get_or_init(small);
        let mut stream = tokenizer.text_stream();
        let told: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        let told = told.concat() + &stream.finish().unwrap();
        prop_assert_eq!(told, tokenizer.decode(&ids, true).unwrap());
    }
}

/// Every place of a JSON value but those inside of long lists and maps.
fn places(value: &Value, place: &str, places_found: &mut Vec<String>) {
    places_found.push(place.to_owned());
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in inner.into_iter().take(12) {
        places(value, &format!("{place}/{key}"), places_found);
    }
}

/// Some of these panic in the `tokenizers` crate.
#[test]
fn damaged_files_are_errors_that_name_them() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/rows/model/tokenizer.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut all = Vec::new();
    places(&whole, "", &mut all);
    let others =
        [Value::Null, 3.into(), "x".into(), Value::Array(vec![]), Value::Object(Map::new())];
    let mut refused = 0;
    for place in &all[1..] {
        let (parent, key) = place.rsplit_once('/').unwrap();
        let mut damaged = vec![whole.clone(); others.len() + 1];
        if let Some(parent) = damaged[0].pointer_mut(parent).and_then(Value::as_object_mut) {
            parent.remove(key);
        }
        for (damaged, other) in damaged[1..].iter_mut().zip(&others) {
            *damaged.pointer_mut(place).unwrap() = other.clone();
        }
        for damaged in damaged {
            match Tokenizer::from_json(damaged.to_string().as_bytes(), Map::new()) {
                Ok(tokenizer) => {
                    let _ = tokenizer
                        .encode("the cat sat")
                        .map(|text| tokenizer.decode(&text.ids, true));
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 100, "{refused}");

    // Three found by mutating bytes, as they were: a decoder without its parts, with an unknown one, with a broken name.
    let text = std::fs::read_to_string(path).unwrap();
    for (part, damage) in
        [("\"content\": \" \"\n      },", ""), ("\"type\": \"Fuse\"", "\"tipe\": \"Fuse\"")]
    {
        assert!(text.contains(part));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), text.replace(part, damage)).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "tokenizer.json: isn't a tokenizer in Hugging Face's format, or is damaged"
            ),
            "{error}"
        );
    }
}
