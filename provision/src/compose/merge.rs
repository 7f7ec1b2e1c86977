//! Files and services laid over one another, by the rules of the Compose specification ("Merge"): maps are
//! merged, lists appended, single values replaced; `!override` replaces what it is on, `!reset` removes it.

use super::yaml::{Key, Node, Overlay, Scalar, Value};

/// What a map is, of which the rules of its keys depend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// A whole file.
    File,
    /// Its services.
    Services,
    /// One of them.
    Service,
    /// A service's `healthcheck`.
    Health,
    /// A service's `deploy`.
    Deploy,
    /// Anything else.
    Other,
}

/// How values of a key are laid over one another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// By what they are.
    Plain,
    /// The upper one replaces the lower, though it may be a list.
    Whole,
    /// Both are a map, or a list of `NAME=VALUE`.
    Pairs,
    /// Both are a map, or a list of `NAME=ADDRESS` or `NAME:ADDRESS`.
    Hosts,
    /// Both are a map of services, or a list.
    Dependencies,
    /// Both are a list, or one text.
    List,
    /// Both are lists, in which what goes to the same place is there once.
    Targets,
}

/// The rule of a key, and what its value is.
fn rule(level: Level, key: &str) -> (Rule, Level) {
    match (level, key) {
        (Level::File, "services") => (Rule::Plain, Level::Services),
        (Level::Services, _) => (Rule::Plain, Level::Service),
        (Level::Service, "healthcheck") => (Rule::Plain, Level::Health),
        (Level::Service, "deploy") => (Rule::Plain, Level::Deploy),
        (Level::Service, "command" | "entrypoint") | (Level::Health, "test") => (Rule::Whole, Level::Other),
        (Level::Service, "environment" | "labels" | "annotations" | "sysctls")
        | (Level::Deploy, "labels") => (Rule::Pairs, Level::Other),
        (Level::Service, "extra_hosts") => (Rule::Hosts, Level::Other),
        (Level::Service, "depends_on") => (Rule::Dependencies, Level::Other),
        (Level::Service, "dns_opt" | "dns_search" | "env_file" | "label_file" | "tmpfs") => {
            (Rule::List, Level::Other)
        }
        (Level::Service, "configs" | "volumes") => (Rule::Targets, Level::Other),
        _ => (Rule::Plain, Level::Other),
    }
}

/// Lays a file over a file, or a service over the one it extends.
pub(super) fn lay_over(level: Level, base: Node, over: Node) -> Node {
    merge((Rule::Plain, level), base, over)
}

/// Takes out what `!reset` removes and nothing was under.
pub(super) fn without_resets(node: Node) -> Node {
    let value = match node.value {
        Value::Mapping(entries) => {
            let kept = entries.into_iter().filter(|(_, node)| node.overlay != Overlay::Reset);
            Value::Mapping(kept.map(|(key, node)| (key, without_resets(node))).collect())
        }
        Value::Sequence(items) => {
            let kept = items.into_iter().filter(|node| node.overlay != Overlay::Reset);
            Value::Sequence(kept.map(without_resets).collect())
        }
        scalar @ Value::Scalar(_) => scalar,
    };
    Node { value, ..node }
}

/// Lays what stands under a key over what stood there.
fn merge((rule, level): (Rule, Level), base: Node, over: Node) -> Node {
    if over.overlay != Overlay::Merge || rule == Rule::Whole {
        return over;
    }
    if over.is_null() {
        return base;
    }
    let alike: fn(Node) -> Node = match rule {
        Rule::Pairs => |node| as_pairs(node, &['=']),
        Rule::Hosts => |node| as_pairs(node, &['=', ':']),
        Rule::Dependencies => as_dependencies,
        Rule::List => as_list,
        Rule::Plain | Rule::Whole | Rule::Targets => |node| node,
    };
    let (base, over) = (alike(base), alike(over));
    let value = match (base.value, over.value) {
        (Value::Mapping(below), Value::Mapping(above)) => Value::Mapping(mappings(level, below, above)),
        (Value::Sequence(below), Value::Sequence(above)) => Value::Sequence(sequences(rule, below, above)),
        (_, above) => above,
    };
    Node { mark: over.mark, value, overlay: Overlay::Merge }
}

fn mappings(level: Level, mut below: Vec<(Key, Node)>, above: Vec<(Key, Node)>) -> Vec<(Key, Node)> {
    for (key, node) in above {
        match below.iter_mut().find(|(other, _)| other.text == key.text) {
            Some((place, under)) => {
                let base = std::mem::replace(under, Node::null(key.mark));
                *under = merge(rule(level, &key.text), base, node);
                place.mark = key.mark;
            }
            None => below.push((key, node)),
        }
    }
    below
}

/// Appends, save for what is there already and what stands for the same thing.
fn sequences(rule: Rule, mut below: Vec<Node>, above: Vec<Node>) -> Vec<Node> {
    for node in above {
        let place = |node: &Node| (rule == Rule::Targets).then(|| target(node)).flatten();
        let stands_for =
            |other: &Node| is_same(other, &node) || place(&node).is_some_and(|at| place(other) == Some(at));
        match below.iter_mut().find(|other| stands_for(other)) {
            Some(other) => *other = node,
            None => below.push(node),
        }
    }
    below
}

/// Where in the container a configuration or a volume goes.
fn target(node: &Node) -> Option<String> {
    let text = match &node.value {
        Value::Scalar(scalar) => scalar.text.split(':').nth(1).unwrap_or(&scalar.text).to_owned(),
        Value::Mapping(entries) => {
            let find = |name: &str| entries.iter().find(|(key, _)| key.text == name);
            match &find("target").or_else(|| find("source"))?.1.value {
                Value::Scalar(scalar) => scalar.text.clone(),
                _ => return None,
            }
        }
        Value::Sequence(_) => return None,
    };
    Some(text.trim_start_matches('/').to_owned())
}

/// Whether they say the same, wherever they stand.
pub(super) fn is_same(one: &Node, other: &Node) -> bool {
    match (&one.value, &other.value) {
        (Value::Scalar(one), Value::Scalar(other)) => one == other,
        (Value::Sequence(one), Value::Sequence(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Mapping(one), Value::Mapping(other)) => {
            let has = |(key, node): &(Key, Node)| {
                other.iter().any(|(name, value)| name.text == key.text && is_same(node, value))
            };
            one.len() == other.len() && one.iter().all(has)
        }
        _ => false,
    }
}

/// A list of `NAME=VALUE` as a map.
fn as_pairs(node: Node, signs: &[char]) -> Node {
    as_map(node, |item, text| match text.split_once(signs) {
        Some((name, value)) => (name, self::text(value, item)),
        None => (text, Node::null(item.mark)),
    })
}

/// A list of services as a map to how they must be.
fn as_dependencies(node: Node) -> Node {
    as_map(node, |item, name| {
        let condition = Key { mark: item.mark, text: "condition".to_owned() };
        let value = Value::Mapping(vec![(condition, text("service_started", item))]);
        (name, Node { mark: item.mark, value, overlay: Overlay::Merge })
    })
}

/// A list of texts as a map, with `entry` of each; what is none of that stays as it is, and is a fault later.
fn as_map(node: Node, entry: impl for<'t> Fn(&Node, &'t str) -> (&'t str, Node)) -> Node {
    let Value::Sequence(items) = &node.value else { return node };
    let entry = |item: &Node| {
        let Value::Scalar(scalar) = &item.value else { return None };
        let (name, value) = entry(item, &scalar.text);
        Some((Key { mark: item.mark, text: name.to_owned() }, value))
    };
    match items.iter().map(entry).collect() {
        Some(entries) => Node { value: Value::Mapping(entries), ..node },
        None => node,
    }
}

fn as_list(node: Node) -> Node {
    match node.value {
        Value::Scalar(_) => {
            let (mark, overlay) = (node.mark, node.overlay);
            Node { mark, value: Value::Sequence(vec![node]), overlay }
        }
        _ => node,
    }
}

fn text(text: &str, at: &Node) -> Node {
    let value = Value::Scalar(Scalar { text: text.to_owned(), plain: false });
    Node { mark: at.mark, value, overlay: Overlay::Merge }
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;

    /// The values without their places, as a kind of JSON.
    fn told(node: &Node) -> String {
        let list = |items: Vec<String>| items.join(", ");
        match &node.value {
            Value::Scalar(scalar) => scalar.text.clone(),
            Value::Sequence(items) => format!("[{}]", list(items.iter().map(told).collect())),
            Value::Mapping(entries) => {
                let entry = |(key, node): &(Key, Node)| format!("{}: {}", key.text, told(node));
                format!("{{{}}}", list(entries.iter().map(entry).collect()))
            }
        }
    }

    fn laid(level: Level, base: &str, over: &str) -> String {
        let node = |text: &str, file| parse(text, file).unwrap().unwrap();
        told(&without_resets(lay_over(level, node(base, 0), node(over, 1))))
    }

    #[test]
    fn files_are_merged_as_the_specification_says() {
        for (base, over, wanted) in [
            ("a: 1", "a: 2", "{a: 2}"),
            ("a: 1", "b: 2", "{a: 1, b: 2}"),
            ("a: 1", "a:", "{a: 1}"),
            ("command: [a, b]", "command: [c]", "{command: [c]}"),
            ("entrypoint: a", "entrypoint: [c]", "{entrypoint: [c]}"),
            (
                "healthcheck: {test: [a, b], retries: 2}",
                "healthcheck: {test: [c]}",
                "{healthcheck: {test: [c], retries: 2}}",
            ),
            ("environment: [A=1, B=2, C]", "environment: {B: 3}", "{environment: {A: 1, B: 3, C: }}"),
            ("labels: {a: x}", "labels: [a=y, b=z=q]", "{labels: {a: y, b: z=q}}"),
            (
                "deploy: {labels: [a=x], replicas: 1}",
                "deploy: {labels: {b: y}}",
                "{deploy: {labels: {a: x, b: y}, replicas: 1}}",
            ),
            ("extra_hosts: ['a:::1']", "extra_hosts: {b: 1.2.3.4}", "{extra_hosts: {a: ::1, b: 1.2.3.4}}"),
            (
                "depends_on: [a]",
                "depends_on: {b: {condition: c}}",
                "{depends_on: {a: {condition: service_started}, b: {condition: c}}}",
            ),
            ("tmpfs: /a", "tmpfs: [/b, /a]", "{tmpfs: [/a, /b]}"),
            ("ports: ['80:80']", "ports: ['80:80', '81:81']", "{ports: [80:80, 81:81]}"),
            (
                "ports: [{target: 80, published: 80}]",
                "ports: [{published: 80, target: 80}]",
                "{ports: [{published: 80, target: 80}]}",
            ),
            (
                "configs: [{source: a, target: /x}]",
                "configs: [{source: b, target: x}, c]",
                "{configs: [{source: b, target: x}, c]}",
            ),
            ("ports: ['80:80']", "ports: !override ['81:81']", "{ports: [81:81]}"),
            ("ports: ['80:80']\na: 1", "ports: !reset []", "{a: 1}"),
            ("environment: {A: 1, B: 2}", "environment: {A: !reset null}", "{environment: {B: 2}}"),
            ("a: 1", "b: !reset 2", "{a: 1}"),
            ("a: [1]", "a: {b: 1}", "{a: {b: 1}}"),
        ] {
            assert_eq!(laid(Level::Service, base, over), wanted, "{base} under {over}");
        }
    }

    #[test]
    fn a_service_may_be_called_like_a_key() {
        let base = "services: {command: {image: a, expose: [1]}, labels: {image: a}}";
        let over = "services: {command: {expose: [2]}, labels: {user: b}}";
        let wanted = "{services: {command: {image: a, expose: [1, 2]}, labels: {image: a, user: b}}}";
        assert_eq!(laid(Level::File, base, over), wanted);
    }
}
