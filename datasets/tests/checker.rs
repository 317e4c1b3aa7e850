//! The checker, on answers that a model might give.

use fpo_datasets::{
    Attribute, Format, Language, NUMBERS, Operation, PLACES, Phrasing, Question, Shape, Task,
    UNITS, Verdict, check,
};

fn fact(format: Format) -> Task {
    let question = Question::Fact { place: PLACES[0], attribute: Attribute::Animal };
    Task { question, format, phrasing: Phrasing::Asking }
}

fn sum(format: Format) -> Task {
    let question =
        Question::Arithmetic { left: 4, operation: Operation::Add, right: 3, unit: UNITS[0] };
    Task { question, format, phrasing: Phrasing::Terse }
}

fn sort(format: Format) -> Task {
    let [one, two, _, _, _, six, ..] = NUMBERS;
    Task {
        question: Question::Sort { items: vec![six, one, two] },
        format,
        phrasing: Phrasing::Polite,
    }
}

#[test]
fn prompts_and_answers() {
    let cases = [
        (sum(Format::Plain), "Count apples: 4 + 3.", "7 apples."),
        (sum(Format::Json), "Count apples: 4 + 3. As JSON.", r#"{"answer": "7 apples"}"#),
        (sum(Format::Upper), "Count apples: 4 + 3. In upper case.", "7 APPLES"),
        (sum(Format::French), "Count apples: 4 + 3. In French.", "7 pommes."),
        (
            sort(Format::Json),
            "Please sort the numbers six, one, two. Use JSON.",
            r#"{"answer": ["one", "two", "six"]}"#,
        ),
        (
            sort(Format::Bullets),
            "Please sort the numbers six, one, two. Use bullets.",
            "- one\n- two\n- six",
        ),
        (
            sort(Format::Lower),
            "Please sort the numbers six, one, two. Use lower case.",
            "one, two, six",
        ),
        (
            sort(Format::Quoted),
            "Please sort the numbers six, one, two. Use quotes.",
            "\"one, two, six\"",
        ),
        (
            sort(Format::French),
            "Please sort the numbers six, one, two. Use French.",
            "Un, deux, six.",
        ),
    ];
    for (task, prompt, answer) in cases {
        assert_eq!(task.prompt(), prompt);
        assert_eq!(task.answer(), answer);
        assert_eq!(check(&task, answer), Verdict::Right);
    }
}

#[test]
fn every_format_of_a_sum() {
    let found = |found| Verdict::WrongFormat { found };
    let cases = [
        (Format::Plain, "7 apples.", Verdict::Right),
        (Format::Plain, "7 apples. \n\n", Verdict::Right),
        (Format::Plain, "7 apples", found(Shape::Lower)),
        (Format::Plain, "7.", Verdict::WrongContent),
        (Format::Plain, "17 apples.", Verdict::WrongContent),
        (Format::Plain, "7 coins.", Verdict::WrongContent),
        (Format::Plain, "Seven apples.", Verdict::WrongContent),
        (Format::Plain, "7 pommes.", Verdict::WrongLanguage),
        (Format::Plain, "7  apples.", Verdict::Unreadable),
        (Format::Plain, " 7 apples.", Verdict::Right),
        (Format::Plain, "Sure! 7 apples.", Verdict::Rambling),
        (Format::Plain, "7 apples. I hope that helps.", Verdict::Rambling),
        (Format::Plain, "Is it 7 apples? Yes.", Verdict::Unreadable),
        (Format::Plain, "", Verdict::Empty),
        (Format::Plain, " \n\t", Verdict::Empty),
        (Format::Upper, "7 APPLES", Verdict::Right),
        (Format::Upper, "7 Apples", Verdict::Unreadable),
        (Format::Upper, "7 apples", found(Shape::Lower)),
        (Format::Upper, "8 apples", Verdict::Unreadable),
        (Format::Upper, "7 POMMES", Verdict::WrongLanguage),
        (Format::Lower, "7 apples", Verdict::Right),
        (Format::Lower, "7 apples.", found(Shape::Sentence)),
        (Format::Lower, "7 APPLES", found(Shape::Upper)),
        (Format::Quoted, "\"7 Apples\"", Verdict::Right),
        (Format::Quoted, "“7 apples”", Verdict::Unreadable),
        (Format::Quoted, "'7 apples'", Verdict::Unreadable),
        (Format::Quoted, "\"7 apples", Verdict::Unreadable),
        (Format::French, "7 pommes.", Verdict::Right),
        (Format::French, "7 apples.", Verdict::WrongLanguage),
        (Format::French, "7 pommes", found(Shape::Lower)),
    ];
    for (format, answer, verdict) in cases {
        assert_eq!(check(&sum(format), answer), verdict, "{format:?} {answer:?}");
    }
}

#[test]
fn every_format_of_a_list() {
    let found = |found| Verdict::WrongFormat { found };
    let cases = [
        (Format::Plain, "One, two, six.", Verdict::Right),
        (Format::Plain, "One, Two, Six.", Verdict::Unreadable),
        (Format::Plain, "one, two, six.", Verdict::Unreadable),
        (Format::Plain, "One, two and six.", Verdict::WrongContent),
        (Format::Plain, "One, two.", Verdict::WrongContent),
        (Format::Plain, "Six, two, one.", Verdict::WrongContent),
        (Format::Plain, "ONE, TWO, SIX", found(Shape::Upper)),
        (Format::Json, r#"{"answer":["one","two","six"]}"#, Verdict::Right),
        (Format::Json, "{\n  \"answer\": [\"One\", \"Two\", \"Six\"]\n}\n", Verdict::Right),
        (
            Format::Json,
            r#"{"answer": ["one", "two", "six"], "note": "sorted"}"#,
            Verdict::Unreadable,
        ),
        (Format::Json, r#"{"result": ["one", "two", "six"]}"#, Verdict::Unreadable),
        (Format::Json, r#"{"answer": "one, two, six"}"#, Verdict::Unreadable),
        (Format::Json, r#"["one", "two", "six"]"#, Verdict::Unreadable),
        (Format::Json, r#"{"answer": ["one", "two", "six"]"#, Verdict::Unreadable),
        (Format::Json, r#"{"answer": ["two", "one", "six"]}"#, Verdict::WrongContent),
        (Format::Json, r#"{"answer": ["un", "deux", "six"]}"#, Verdict::WrongLanguage),
        (Format::Json, r#"Sure: {"answer": ["one", "two", "six"]}"#, Verdict::Rambling),
        (Format::Json, "- one\n- two\n- six", found(Shape::Bullets)),
        (Format::Bullets, "- one\n- two\n- six\n", Verdict::Right),
        (Format::Bullets, "* One\n* Two\n* Six", Verdict::Right),
        (Format::Bullets, "• one\n• two\n• six", Verdict::Right),
        (Format::Bullets, "1. one\n2. two\n3. six", Verdict::Unreadable),
        (Format::Bullets, "- one\n\n- two\n\n- six", Verdict::Unreadable),
        (Format::Bullets, "- one, two, six", Verdict::Unreadable),
        (Format::Bullets, "Here you are:\n- one\n- two\n- six", Verdict::Rambling),
        (Format::Bullets, "- un\n- deux\n- six", Verdict::WrongLanguage),
        (Format::French, "Un, deux, six.", Verdict::Right),
        (Format::French, "Un, two, six.", Verdict::WrongContent),
    ];
    for (format, answer, verdict) in cases {
        assert_eq!(check(&sort(format), answer), verdict, "{format:?} {answer:?}");
    }
}

#[test]
fn a_fact_of_the_world() {
    let animal = PLACES[0].value(Attribute::Animal);
    let french = animal.text(Language::French);
    let cases = [
        (Format::Lower, animal.text(Language::English).to_owned(), Verdict::Right),
        (Format::Lower, french.to_owned(), Verdict::WrongLanguage),
        (
            Format::Lower,
            format!("- {}", animal.text(Language::English)),
            Verdict::WrongFormat { found: Shape::Bullets },
        ),
        (Format::Lower, "storm".to_owned(), Verdict::WrongContent),
        (Format::French, "storm".to_owned(), Verdict::Unreadable),
    ];
    for (format, answer, verdict) in cases {
        assert_eq!(check(&fact(format), &answer), verdict, "{format:?} {answer:?}");
    }
}

#[test]
fn a_verdict_says_what_is_wrong() {
    let cases = [
        (Verdict::Right, (true, true, true), "right"),
        (Verdict::Empty, (false, false, false), "empty"),
        (Verdict::WrongContent, (false, true, false), "in the requested format, but wrong"),
        (Verdict::WrongLanguage, (false, true, true), "right, but in the wrong language"),
        (Verdict::WrongFormat { found: Shape::Json }, (false, false, true), "right, but as JSON"),
        (Verdict::Rambling, (false, false, true), "right, but not alone"),
        (Verdict::Unreadable, (false, false, false), "not in the requested format"),
    ];
    for (verdict, properties, text) in cases {
        assert_eq!(
            (verdict.is_right(), verdict.in_format(), verdict.has_right_content()),
            properties,
            "{verdict:?}"
        );
        assert_eq!(verdict.to_string(), text);
    }
}
