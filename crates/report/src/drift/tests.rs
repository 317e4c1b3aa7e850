use super::*;

fn change(mean: f64, change: f64, error: Option<f64>, places: Vec<Place>) -> Change {
    let after = Level { mean, firing: 0.25 };
    Change { after, change, standard_error: error, places }
}

fn place(text: &str) -> Place {
    let [left, token, right] = [(); 3].map(|()| text.to_owned());
    Place { left, token, right, before: 0.5, after: 2.0 }
}

fn page(text: &str, models: usize) -> Page {
    let feature = |index: usize| Feature {
        index,
        before: Level { mean: 0.25, firing: 0.125 },
        after: vec![change(1.0, 0.75, Some(0.5), vec![place(text)]); models],
    };
    Page {
        title: text.into(),
        subtitle: text.into(),
        facts: vec![(text.into(), text.into())],
        models: vec![text.into(); models],
        features: vec![feature(3), feature(17)],
        choice: text.into(),
        notes: vec![text.into()],
    }
}

#[test]
fn nothing_in_a_text_becomes_markup() {
    let attack =
        "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'>\u{202e}";
    for models in 0..3 {
        let page = render(&page(attack, models));
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script").count(), 1);
        assert!(!page.contains("<img"));
        assert!(models == 0 || page.matches("&lt;script&gt;").count() >= 15);
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("src=\""));
    }
}

/// Everything is in the markup, in order, and the values to sort by are those that are shown.
#[test]
fn the_table_is_whole_without_the_script() {
    let page = render(&page(" word", 2));
    let [first, second] = [page.find("id=\"f3\"").unwrap(), page.find("id=\"f17\"").unwrap()];
    assert!(first < second);
    let body = &page[first..second];
    for says in [
        "data-change=\"7.5e-1 7.5e-1\"",
        "data-certainty=\"1.5e0 1.5e0\"",
        "data-firing=\"1.25e-1 2.5e-1 2.5e-1\"",
        "<span class=\"mean\">0.2500</span>",
        "fires on 12.5%",
        "+0.7500",
        " ± 0.5000",
        "class=\"move uncertain\"",
        "<summary><code>␣word</code>",
        "0.500 → 2.000",
        "<mark class=\"rose\"> word</mark>",
    ] {
        assert!(body.contains(says), "no {says} in {body}");
    }
    // What needs the script is shown by it.
    assert!(page.contains("id=\"controls\" hidden"));
}

#[test]
fn certainty_is_the_change_in_standard_errors() {
    let of = |of: f64, error: Option<f64>| {
        let change = change(0.0, of, error, Vec::new());
        (change.certainty(), change.is_uncertain())
    };
    assert_eq!(of(-0.3, Some(0.1)), (0.3 / 0.1, false));
    assert_eq!(of(0.2, Some(0.1)), (2.0, true));
    assert_eq!(of(0.2, None), (0.0, true));
    assert_eq!(of(0.0, Some(0.0)), (0.0, true));
    assert!(of(0.1, Some(0.0)).0 > 1e100 && !of(0.1, Some(0.0)).1);
}

#[test]
fn spaces_around_a_token_are_marked() {
    for (token, says) in
        [(" a", "␣a"), ("a b", "a b"), ("", "(empty)"), ("  ", "␣␣"), ("\n", "↵"), ("é ", "é␣")]
    {
        assert_eq!(shown(token), says);
    }
}
