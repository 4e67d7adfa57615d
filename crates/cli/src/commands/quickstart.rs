//! Not yet.
use crate::arguments::Common;
/// x
#[derive(clap::Args, Debug)]
pub struct QuickstartArguments {}
/// x
pub fn run(_: &QuickstartArguments, _: &Common) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
