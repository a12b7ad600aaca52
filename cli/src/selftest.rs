//! `cltlab selftest`: does this device compute what it should?

use clap::{Args, ValueEnum};
use cltlab::prelude::*;
use cltlab::selftest::SelfTest;

#[derive(Args)]
pub struct SelftestArgs {
    /// The device to check; auto: the first GPU, or the CPU where there is none
    #[arg(long, value_enum, default_value_t = Where::Auto)]
    device: Where,
}

/// A device by its kind.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Where {
    Auto,
    Cpu,
    Cuda,
}

impl Where {
    pub fn open(self) -> Result<Device> {
        match self {
            Where::Auto => auto_device(),
            Where::Cpu => Ok(Device::Cpu),
            Where::Cuda => cltlab::device::cuda(0),
        }
    }
}

pub fn selftest(args: &SelftestArgs) -> Result<()> {
    let device = args.device.open()?;
    println!("deviation, relative (allowed)");
    let test = SelfTest::observed(&device, &mut |check| println!("{check}"))?;
    println!("self-test of {}: {}", test.device, test.summary());
    match test.passed() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Mismatch, format!("self-test of {}: some checks failed", test.device)).help("do not trust results of this device; report the table above")),
    }
}
