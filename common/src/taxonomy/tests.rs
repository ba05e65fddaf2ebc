use proptest::prelude::*;

use super::*;

#[test]
fn the_standard_taxonomy_has_the_published_channels() {
    let taxonomy = Taxonomy::standard();
    assert_eq!(taxonomy.len(), 32);
    let kinds = |kind| taxonomy.classes().iter().filter(|class| class.kind == kind).count();
    assert_eq!((kinds(ClassKind::Organ), kinds(ClassKind::Tumour), kinds(ClassKind::Cyst)), (25, 6, 1));
    let prompts = |id| taxonomy.class(ClassId::new(id).unwrap()).unwrap().prompt_name.clone();
    assert_eq!([prompts(8), prompts(25), prompts(2)], ["Arota", "Celiac Truck", "Right Kidney"]);
}

#[test]
fn a_class_is_found_by_id_name_and_alias() {
    let taxonomy = Taxonomy::standard();
    let id = |text| taxonomy.find(text).map(|class| class.id.get());
    assert_eq!(["9", "Postcava", "IVC", "inferior_vena_cava"].map(id), [Some(9); 4]);
    assert_eq!(["kidney tumour", "Kidney-Tumor", "kidney_right"].map(id), [Some(26), Some(26), Some(2)]);
    assert_eq!(["0", "33", "heart", ""].map(id), [None; 4]);
}

#[test]
fn parents_and_sides_are_those_of_the_body() {
    let taxonomy = Taxonomy::standard();
    let class = |id| ClassId::new(id).unwrap();
    assert_eq!(taxonomy.parents(class(26)), [class(2), class(3)]);
    assert_eq!(taxonomy.parents(class(6)), []);
    assert_eq!(taxonomy.left_of(class(2)), Some(class(3)));
    assert_eq!(taxonomy.left_of(class(24)), Some(class(23)));
    assert_eq!(taxonomy.left_of(class(3)), None);
}

/// All parties pin this digest: a change of it makes every running study another one.
#[test]
fn the_digest_of_the_standard_taxonomy_is_frozen() {
    insta::assert_snapshot!(Taxonomy::standard().digest(), @"57e4a3922c7bed671a7296d955a017457f81941941b52ab698768ab3f775afeb");
}

#[test]
fn printing_and_parsing_gives_the_same_taxonomy() {
    let taxonomy = Taxonomy::standard();
    assert_eq!(Taxonomy::parse("t", &taxonomy.to_toml()).unwrap(), taxonomy);
    let json = serde_json::to_string(&taxonomy).unwrap();
    assert_eq!(serde_json::from_str::<Taxonomy>(&json).unwrap(), taxonomy);
}

#[test]
fn a_class_meets_its_counterpart_by_any_of_its_names() {
    let text = "[[class]]\nid = 1\nname = \"Heart\"\nkind = \"organ\"\n\
                [[class]]\nid = 2\nname = \"IVC\"\nkind = \"organ\"\naliases = [\"vena cava\"]\n";
    let (own, standard) = (Taxonomy::parse("own.toml", text).unwrap(), Taxonomy::standard());
    let at = |taxonomy: &Taxonomy, id| taxonomy.class(ClassId::new(id).unwrap()).cloned().unwrap();
    assert_eq!(standard.counterpart(&at(&own, 1)), None);
    assert_eq!(standard.counterpart(&at(&own, 2)), ClassId::new(9));
    assert_eq!(own.counterpart(&at(&standard, 9)), ClassId::new(2), "its alias is the other's name");
    assert_eq!(own.counterpart(&at(&standard, 6)), None);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = r#"
[[class]]
id = 1
name = "liver"
kind = "organ"
parents = [2]

[[class]]
id = 3
name = "Liver"
kind = "tumour"

[[class]]
id = 3
name = "right kidney"
kind = "organ"
side = "right"
pair = 1
aliases = ["17"]
"#;
    insta::assert_snapshot!(Taxonomy::parse("taxonomy.toml", text).unwrap_err(), @r#"
    taxonomy.toml:6: `class[0].parents`: an organ has no parents
    error: taxonomy.toml:6: `class[0].parents`: class 2 is not an organ
    error: taxonomy.toml:8: `class[1].parents`: a tumour or cyst needs the organs it lies in
    error: taxonomy.toml:9: `class[1].id`: id 3
      allowed: 2: ids ascend from 1 without a gap
    error: taxonomy.toml:10: `class[1].name`: `Liver` already names class 1
    error: taxonomy.toml:18: `class[2].pair`: class 1 is not paired back to 3
    error: taxonomy.toml:19: `class[2].aliases`: `17` would be read as an id
    "#);
}

#[test]
fn names_with_line_breaks_and_escape_sequences_are_refused() {
    let text = r#"
[[class]]
id = 1
name = "liver\nspleen"
kind = "organ"
prompt_name = "a\tb"
aliases = ["hepar", "\u001b[2J"]
"#;
    let refused = Taxonomy::parse("taxonomy.toml", text).unwrap_err();
    let lines: Vec<_> = refused.items().iter().map(|item| item.line).collect();
    assert_eq!(lines, [Some(4), Some(6), Some(7)], "{refused}");
}

#[test]
fn unknown_keys_are_reported_together() {
    let text = "[[class]]\nid = 1\nname = \"liver\"\nkind = \"organ\"\nkolour = 1\n[[class]]\nid = 2\nname = \"x\"\nkind = \"organn\"\n";
    insta::assert_snapshot!(Taxonomy::parse("taxonomy.toml", text).unwrap_err(), @r#"
    taxonomy.toml:5: `class[0].kolour`: unknown field `kolour`, expected one of `id`, `name`, `kind`, `prompt_name`, `parents`, `side`, `pair`, `aliases`
    error: taxonomy.toml:9: `class[1].kind`: unknown variant `organn`, expected one of `organ`, `tumour`, `cyst`
    "#);
}

proptest! {
    #[test]
    fn the_digest_ignores_comments_blank_lines_and_order_of_keys(seed in any::<u64>()) {
        let standard = Taxonomy::standard();
        let mut blocks = String::new();
        for (index, block) in standard.to_toml().split("[[class]]").skip(1).enumerate() {
            let mut lines: Vec<&str> = block.lines().filter(|line| !line.is_empty()).collect();
            let by = (seed as usize).wrapping_add(index) % lines.len();
            lines.rotate_left(by);
            blocks.push_str(&format!("# {seed}\n[[class]]\n\n{}\n", lines.join(" # note\n")));
        }
        prop_assert_eq!(Taxonomy::parse("t", &blocks).unwrap().digest(), standard.digest());
    }

    #[test]
    fn the_digest_follows_every_name(index in 0usize..32, name in "[a-z]{3,8} [a-z]{3,8} [a-z]{3,8}") {
        let standard = Taxonomy::standard();
        let text = standard.to_toml().replacen(&format!("name = \"{}\"", standard.classes()[index].name), &format!("name = \"{name}\""), 1);
        prop_assert_ne!(Taxonomy::parse("t", &text).unwrap().digest(), standard.digest());
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Taxonomy::parse("t", &text);
    }
}
