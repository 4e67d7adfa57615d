//! The module names of the families: how a role is spelled in a checkpoint, and which role a name means.

use finegates_checkpoint::config::Family;

use super::Role;

type Modules = [(Role, &'static str)];

const BERT: &Modules = &[
    (Role::Query, "attention.self.query"),
    (Role::Key, "attention.self.key"),
    (Role::Value, "attention.self.value"),
    (Role::AttentionOutput, "attention.output.dense"),
    (Role::Up, "intermediate.dense"),
    (Role::Down, "output.dense"),
];

const DISTILBERT: &Modules = &[
    (Role::Query, "attention.q_lin"),
    (Role::Key, "attention.k_lin"),
    (Role::Value, "attention.v_lin"),
    (Role::AttentionOutput, "attention.out_lin"),
    (Role::Up, "ffn.lin1"),
    (Role::Down, "ffn.lin2"),
];

const MPNET: &Modules = &[
    (Role::Query, "attention.attn.q"),
    (Role::Key, "attention.attn.k"),
    (Role::Value, "attention.attn.v"),
    (Role::AttentionOutput, "attention.attn.o"),
    (Role::Up, "intermediate.dense"),
    (Role::Down, "output.dense"),
];

const LLAMA: &Modules = &[
    (Role::Query, "self_attn.q_proj"),
    (Role::Key, "self_attn.k_proj"),
    (Role::Value, "self_attn.v_proj"),
    (Role::AttentionOutput, "self_attn.o_proj"),
    (Role::Gate, "mlp.gate_proj"),
    (Role::Up, "mlp.up_proj"),
    (Role::Down, "mlp.down_proj"),
];

/// The gateable modules of a layer, in the wiring's order.
pub(super) fn modules(family: Family) -> &'static Modules {
    match family {
        Family::Bert | Family::Roberta | Family::XlmRoberta => BERT,
        Family::DistilBert => DISTILBERT,
        Family::MpNet => MPNET,
        Family::Llama | Family::Mistral | Family::Qwen2 => LLAMA,
    }
}

/// The path of the list of layers in the `…ForSequenceClassification` state dict.
pub(super) fn stack(family: Family) -> &'static str {
    match family {
        Family::Bert => "bert.encoder.layer",
        Family::Roberta | Family::XlmRoberta => "roberta.encoder.layer",
        Family::DistilBert => "distilbert.transformer.layer",
        Family::MpNet => "mpnet.encoder.layer",
        Family::Llama | Family::Mistral | Family::Qwen2 => "model.layers",
    }
}

/// The layer's own path (`…layer.3`), its number, the role of a module path and whether its layer's queries and keys
/// turn, if it is one of the names above directly below a numbered layer.
pub(super) fn recognise(path: &str) -> Option<(&str, usize, Role, bool)> {
    let families = [(BERT, false), (DISTILBERT, false), (MPNET, false), (LLAMA, true)];
    families.into_iter().find_map(|(modules, rotary)| {
        modules.iter().find_map(|(role, module)| {
            let stem = path.strip_suffix(module)?.strip_suffix('.')?;
            let layer = stem.rsplit('.').next()?.parse().ok()?;
            Some((stem, layer, *role, rotary))
        })
    })
}

/// The first numbered component of a module path.
pub(super) fn layer_number(path: &str) -> Option<usize> {
    path.split('.').find_map(|component| component.parse().ok())
}
