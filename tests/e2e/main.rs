//! The whole as hospitals run it: both programs as processes, over QUIC with mutual TLS, each with its own folder.
//!
//! [`survival`] kills them in mid-round, [`kills`] wherever a seed or a failpoint says, [`refusals`] knocks where it may not come in, [`demo`] watches the demo come to
//! its end, good or bad, [`hospital`] types what a hospital's people type, [`cross_site`] leaves each site out once, [`evaluators`] ends those that score,
//! [`bf16`] rounds updates, [`finetune`] trains for other classes, [`storage`] fills disks and changes what is on them,
//! [`site_storage`] does so at a site, [`torn`] tears journals, [`tcp`] has no UDP, or nothing but a proxy.
//! Whatever a test waits for is a line that a process says, with a deadline; no process outlives its test.

mod bf16;
mod cross_site;
mod demo;
mod evaluators;
mod finetune;
mod harness;
mod hospital;
mod kills;
mod refusals;
mod site_storage;
mod storage;
mod survival;
mod tcp;
mod torn;
