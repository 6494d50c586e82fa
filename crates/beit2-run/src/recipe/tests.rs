use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Optimizer {
    lr: f64,
    betas: Vec<f64>,
    warmup_steps: u32,
    steps: Option<u64>,
    precision: Option<Precision>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    F32,
    Bf16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: String,
    folder: Option<String>,
    epochs: u32,
    precision: Precision,
    limit: Option<usize>,
    optimizer: Optimizer,
    head: Head,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    depth: u32,
    warmup_steps: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "plain".into(),
            folder: Some("cache".into()),
            epochs: 10,
            precision: Precision::F32,
            limit: None,
            optimizer: Optimizer {
                lr: 1.5e-3,
                betas: vec![0.9, 0.98],
                warmup_steps: 5,
                steps: None,
                precision: None,
            },
            head: Head { depth: 2, warmup_steps: 1 },
        }
    }
}

const ALTERNATIVES: [(&str, &str); 1] = [("epochs", "optimizer.steps")];

fn check(text: &str, overrides: &[(&str, &str)]) -> Result<Settings, String> {
    let overrides: Vec<_> = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    resolve(text, "recipes/x.toml", &overrides, &ALTERNATIVES).map_err(|error| error.to_string())
}

fn refusal(text: &str, overrides: &[(&str, &str)]) -> String {
    check(text, overrides).expect_err("must be refused")
}

#[test]
fn later_layers_replace_single_keys() {
    let got = check("epochs = 3\n[optimizer]\nlr = 1\n", &[("betas", "[0.5, 0.6]"), ("limit", "7")]).unwrap();
    assert_eq!(got.epochs, 3);
    assert_eq!(
        got.optimizer,
        Optimizer { lr: 1.0, betas: vec![0.5, 0.6], warmup_steps: 5, steps: None, precision: None }
    );
    assert_eq!(got.limit, Some(7));
    assert_eq!(check("", &[]).unwrap(), Settings::default());
}

#[test]
fn overrides_take_full_names_short_names_tables_and_bare_words() {
    let got =
        check("", &[("lr", "2e-4"), ("head.depth", "4"), ("precision", "bf16"), ("name", "300")]).unwrap();
    assert_eq!((got.optimizer.lr, got.head.depth, got.precision), (2e-4, 4, Precision::Bf16));
    assert_eq!(got.name, "300", "a number is a name where the setting is a name");
    let got = check("", &[("optimizer", "{ lr = 3.0, warmup_steps = 9 }")]).unwrap();
    assert_eq!(
        got.optimizer,
        Optimizer { lr: 3.0, betas: vec![0.9, 0.98], warmup_steps: 9, steps: None, precision: None }
    );
    assert_eq!(check("", &[("name", "a b # c")]).unwrap().name, "a b # c");
}

#[test]
fn unknown_keys_are_named_with_place_and_suggestion() {
    assert_eq!(
        refusal("epochs = 1\n\n[optimiser]\nlr = 1.0\n", &[]),
        "unknown key `optimiser.lr` in recipes/x.toml line 4; did you mean `optimizer.lr`?"
    );
    assert_eq!(
        refusal("lr = 1.0", &[]),
        "unknown key `lr` in recipes/x.toml line 1; did you mean `optimizer.lr`?"
    );
    assert_eq!(
        refusal("", &[("epoch", "3")]),
        "unknown key `epoch` in the override `epoch=3`; did you mean `epochs`?"
    );
    assert_eq!(
        refusal("zzz = 1", &[]),
        "unknown key `zzz` in recipes/x.toml line 1; no setting has a similar name"
    );
}

#[test]
fn ambiguous_and_contradictory_overrides_are_refused() {
    assert_eq!(
        refusal("", &[("warmup_steps", "3")]),
        "`warmup_steps` in the override `warmup_steps=3` could be `optimizer.warmup_steps` or `head.warmup_steps`; \
         write the full name"
    );
    assert_eq!(
        refusal("", &[("lr", "1.0"), ("optimizer.lr", "2.0")]),
        "`optimizer.lr` is set to both 1.0 and 2.0; give it once"
    );
    assert!(
        check("", &[("lr", "1.0"), ("optimizer.lr", "1.0")]).is_ok(),
        "the same value twice is no contradiction"
    );
    assert!(
        refusal("epochs = 1\nepochs = 2\n", &[])
            .starts_with("recipes/x.toml line 2 is not valid TOML: duplicate key")
    );
}

#[test]
fn wrong_kinds_say_expected_and_found() {
    assert_eq!(
        refusal("\n[optimizer]\nlr = \"fast\"\n", &[]),
        "`optimizer.lr` in recipes/x.toml line 3 must be a number, found a string (\"fast\")"
    );
    assert_eq!(
        refusal("", &[("epochs", "1.5")]),
        "`epochs` in the override `epochs=1.5` must be a whole number, found a number (1.5)"
    );
    assert_eq!(
        refusal("optimizer = 3", &[]),
        "`optimizer` in recipes/x.toml line 1 must be a table of settings, found a whole number (3)"
    );
    let negative = refusal("epochs = -1", &[]);
    assert!(negative.starts_with("`epochs` in recipes/x.toml line 1 cannot be -1: "), "{negative}");
    let variant = refusal("precision = \"f16\"", &[]);
    assert!(
        variant.contains("cannot be \"f16\": unknown variant `f16`, expected `f32` or `bf16`"),
        "{variant}"
    );
    let item = refusal("[optimizer]\nbetas = [0.9, \"x\"]", &[]);
    assert!(item.starts_with("`optimizer.betas` in recipes/x.toml line 2 cannot be"), "{item}");
    let limit = refusal("limit = \"all\"", &[]);
    assert_eq!(
        limit,
        "`limit` in recipes/x.toml line 1 must be a whole number or \"none\", found a string (\"all\")"
    );
}

#[test]
fn broken_toml_names_the_line() {
    assert!(refusal("epochs = 1\nlr = = 2\n", &[]).starts_with("recipes/x.toml line 2 is not valid TOML"));
}

#[test]
fn printed_settings_resolve_to_themselves() {
    let mut settings = Settings { limit: Some(3), ..Settings::default() };
    settings.optimizer.lr = 0.1 + 0.2;
    let text = to_toml(&settings).unwrap();
    assert_eq!(check(&text, &[]).unwrap(), settings);
    assert!(text.contains("warmup_steps = 5"));
}

#[test]
fn header_is_the_leading_comment_block() {
    assert_eq!(header("# a\n# b\n\n# c\nx = 1\n"), "# a\n# b");
    assert_eq!(header("x = 1\n# a\n"), "");
    assert_eq!(header(""), "");
}

#[test]
fn known_keys_include_the_optional_ones() {
    let keys = known_keys::<Settings>().unwrap();
    for key in ["optimizer.lr", "limit", "folder", "optimizer.steps", "optimizer.precision", "head.depth"] {
        assert!(keys.contains(&key.to_owned()), "{key} is not in {keys:?}");
    }
}

#[test]
fn an_optional_key_is_absent_given_or_taken_away() {
    let got = check("limit = 3\n[optimizer]\nsteps = 8\nprecision = \"bf16\"\n", &[]).unwrap();
    assert_eq!((got.limit, got.optimizer.steps), (Some(3), Some(8)));
    assert_eq!(got.optimizer.precision, Some(Precision::Bf16));
    let got = check("limit = 3\n[optimizer]\nsteps = 8\n", &[("limit", "none"), ("folder", "300")]).unwrap();
    assert_eq!((got.limit, got.folder.as_deref()), (None, Some("300")), "a number is a name here too");
    let got = check("limit = 3\nfolder = \"none\"\n", &[]).unwrap();
    assert_eq!((got.limit, &got.folder), (Some(3), &None));
    // What is printed is what is read: this default has a value.
    let text = to_toml(&got).unwrap();
    assert!(text.contains("folder = \"none\"") && !text.contains("steps = \"none\""), "{text}");
    assert_eq!(check(&text, &[]).unwrap(), got);
}

#[test]
fn a_later_layer_decides_between_alternatives() {
    let steps = "[optimizer]\nsteps = 8\n";
    assert_eq!(check(steps, &[("epochs", "2")]).unwrap().optimizer.steps, None);
    assert_eq!(check(steps, &[("epochs", "2"), ("steps", "9")]).unwrap().optimizer.steps, Some(9));
    let both = format!("epochs = 2\n{steps}");
    assert_eq!(check(&both, &[]).unwrap().optimizer.steps, Some(8), "one layer may give both");
}
