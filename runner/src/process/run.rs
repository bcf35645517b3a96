//! `run`: one runner, from its plan file to its exit code.

use std::{fs, io, net::SocketAddr, path::PathBuf, process::ExitCode};

use loadtest_core::{
    metrics::Identity,
    plan::{Plan, PlanError},
};

use crate::{
    load::engine::Engine,
    machine::limits::lower_priority,
    prepare::{error::PrepareError, plan::PreparedPlan},
    process::{
        lifecycle::{self, End},
        machine_check::{Limits, find_problems},
        server::{Control, bind_listener},
        warm_up::warm_up,
    },
};

/// Options of a runner.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Path of the plan.
    pub plan: PathBuf,
    /// Address of the metrics and the orders.
    pub listen: SocketAddr,
    /// Index of this runner in the plan.
    pub index: u32,
    /// UID of the pod.
    pub pod_uid: String,
}

/// A runner could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The plan file could not be read.
    #[error("plan {} can't be read", path.display())]
    ReadPlan {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The plan file holds no plan of this version.
    #[error("plan {} can't be used", path.display())]
    ParsePlan {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: PlanError,
    },
    /// The index is too large for the plan.
    #[error("index {index} is not below the plan's {runners} runners")]
    Index {
        /// Index of this runner.
        index: u32,
        /// Number of runners in the plan.
        runners: u32,
    },
    /// The plan can't be carried out.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The limits of this machine are too low for the load. No load was made.
    #[error("{0}")]
    LimitsTooLow(String),
    /// The target did not accept a connection. No load was made.
    #[error("{0}")]
    TargetUnreachable(String),
    /// The address could not be bound.
    #[error("{address} can't be bound")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The system refused a thread, a signal handler or a socket.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Carries out a plan. Returns the exit code of the process.
///
/// # Errors
/// When the plan or the machine does not let the runner make its load.
pub fn run_plan(options: RunOptions) -> Result<ExitCode, RunError> {
    let RunOptions { plan: path, listen, index, pod_uid } = options;
    let plan = read_plan(path)?;
    if index >= plan.runners {
        return Err(RunError::Index { index, runners: plan.runners });
    }
    let identity = Identity { run_uid: plan.run_uid.clone(), index, pod_uid };
    let prepared = PreparedPlan::new(plan, |variable| std::env::var(variable).ok())?;
    warm_up();
    let problems = find_problems(&prepared, index, &Limits::of_this_machine(), false);
    if !problems.is_empty() {
        return Err(RunError::LimitsTooLow(problems.join("; ")));
    }
    let engine = Engine::new(prepared, index)?;
    lower_priority();
    let control = Control::new(engine, identity);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = bind_listener(listen)
            .await
            .map_err(|source| RunError::Bind { address: listen, source })?;
        match lifecycle::run_until_exit(control, listener).await? {
            End::Exit(code) => Ok(code),
            End::TargetUnreachable(tried) => Err(RunError::TargetUnreachable(tried)),
        }
    })
}

fn read_plan(path: PathBuf) -> Result<Plan, RunError> {
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(RunError::ReadPlan { path, source }),
    };
    Plan::parse(&text).map_err(|source| RunError::ParsePlan { path, source })
}
