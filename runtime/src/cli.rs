//! The command line: runc's, on liboci-cli's definitions, with what they lack filled in.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// What the command line says.
#[derive(Debug, Parser)]
#[command(
    name = "trustme",
    about = "An OCI runtime for machines that must be able to prove what they run",
    disable_version_flag = true
)]
pub struct Cli {
    /// Flags that stand before the command.
    #[command(flatten)]
    pub global: Global,
    /// The command; without one, the help is printed.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the version of the program and of the OCI specification
    #[arg(short, long)]
    pub version: bool,
}

/// Flags that stand before the command.
#[derive(Debug, Args)]
pub struct Global {
    /// The flags that liboci-cli knows.
    #[command(flatten)]
    pub oci: liboci_cli::GlobalOpts,
    /// Ignore cgroup permission errors: true, false or auto
    #[arg(long, default_value = "auto", value_parser = ["true", "false", "auto"])]
    pub rootless: String,
    /// Accepted for runc's sake: criu is looked up in PATH
    #[arg(long, hide = true)]
    pub criu: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Not supported: fails and says so
    #[command(hide = true)]
    Checkpoint(Unsupported),
    /// Create a container
    Create(liboci_cli::Create),
    /// Delete any resources held by a container
    Delete(liboci_cli::Delete),
    /// Print resource statistics and out-of-memory events
    Events(Events),
    /// Execute a new process inside a container
    Exec(Box<liboci_cli::Exec>),
    /// Print what this runtime supports
    Features(liboci_cli::Features),
    /// Send a signal to the container's init process
    Kill(Kill),
    /// List the containers of this root directory
    List(liboci_cli::List),
    /// Suspend all processes of a container
    Pause(liboci_cli::Pause),
    /// List the processes of a container
    Ps(liboci_cli::Ps),
    /// Not supported: fails and says so
    #[command(hide = true)]
    Restore(Unsupported),
    /// Resume all processes of a paused container
    Resume(liboci_cli::Resume),
    /// Create a container and run its process
    Run(liboci_cli::Run),
    /// Write a new specification file
    Spec(liboci_cli::Spec),
    /// Execute the process of a created container
    Start(liboci_cli::Start),
    /// Print the state of a container
    State(liboci_cli::State),
    /// Change the resource limits of a container
    Update(Box<Update>),
}

/// Whatever stands behind a command that is not supported.
#[derive(Debug, Args)]
pub struct Unsupported {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<OsString>,
}

/// Arguments of `events`: liboci-cli takes the interval without a unit.
#[derive(Debug, Args)]
pub struct Events {
    /// Time between two statistics, as in 500ms, 5s or 1m
    #[arg(long, default_value = "5s")]
    pub interval: String,
    /// Print the statistics once and end
    #[arg(long)]
    pub stats: bool,
    /// Container identifier
    pub container_id: String,
}

/// Arguments of `kill`: in liboci-cli the signal is required.
#[derive(Debug, Args)]
pub struct Kill {
    /// Send the signal to all processes of the container
    #[arg(short, long)]
    pub all: bool,
    /// Container identifier
    pub container_id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// Arguments of `update`: liboci-cli lacks some, and takes sizes only as bare positive numbers.
#[derive(Debug, Default, Args)]
pub struct Update {
    /// JSON file with the new limits, or - for standard input; all other flags are then ignored
    #[arg(short, long, allow_hyphen_values = true)]
    pub resources: Option<PathBuf>,
    /// Weight of block input and output, 10 to 1000
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// CPU period in microseconds; 0 for the system's default
    #[arg(long)]
    pub cpu_period: Option<u64>,
    /// CPU time allowed in a period, in microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    /// CPU shares (relative weight)
    #[arg(long)]
    pub cpu_share: Option<u64>,
    /// Realtime CPU period in microseconds
    #[arg(long)]
    pub cpu_rt_period: Option<u64>,
    /// Realtime CPU time allowed in a period, in microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// 1: the container runs only when the CPU has nothing else to do
    #[arg(long)]
    pub cpu_idle: Option<i64>,
    /// CPUs to use, as in 0-3,7
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Memory limit in bytes, or with a suffix as in 512M; -1 for none
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Soft memory limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Accepted and ignored: the kernel has dropped it
    #[arg(long, hide = true)]
    pub kernel_memory: Option<String>,
    /// Accepted and ignored: the kernel has dropped it
    #[arg(long, hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Number of processes and threads; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Schema of the Intel RDT/CAT L3 cache
    #[arg(long)]
    pub l3_cache_schema: Option<String>,
    /// Schema of the Intel RDT memory bandwidth
    #[arg(long)]
    pub mem_bw_schema: Option<String>,
    /// Container identifier
    pub container_id: String,
}

/// Parses the command line.
///
/// # Errors
/// The exit code to end with, after the help or the error has been printed: 0, 1, or 3 for an unknown command.
pub fn parse(args: Vec<OsString>) -> Result<Cli, ExitCode> {
    // Short forms that runc has and liboci-cli lacks.
    let command = Cli::command()
        .mut_subcommand("exec", |exec| exec.mut_arg("cap", |cap| cap.short('c')))
        .mut_subcommand("list", |list| {
            list.mut_arg("format", |format| format.short('f'))
        });
    command
        .try_get_matches_from(args)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches))
        .map_err(|err| {
            // Nothing can be done if the terminal is gone.
            let _ = err.print();
            match err.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                ErrorKind::InvalidSubcommand => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        })
}

/// Prints the help, as runc does when no command is given.
pub fn print_help() {
    // Nothing can be done if standard output is gone.
    let _ = Cli::command().print_help();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Cli {
        parse(line.split(' ').map(OsString::from).collect()).expect(line)
    }

    #[test]
    fn clap_finds_the_definitions_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn engines_command_lines_are_understood() {
        let containerd = parsed(
            "trustme --root /run/containerd/runc/default --log /b/log.json --log-format json --systemd-cgroup create \
             --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty.sock --no-pivot abc",
        );
        assert!(containerd.global.oci.systemd_cgroup);
        let Some(Command::Create(create)) = containerd.command else {
            panic!("not create");
        };
        assert_eq!(create.container_id, "abc");
        assert!(create.no_pivot);

        let Some(Command::Kill(kill)) = parsed("trustme kill --all abc 9").command else {
            panic!("not kill");
        };
        assert_eq!((kill.signal.as_str(), kill.all), ("9", true));
        let Some(Command::Kill(kill)) = parsed("trustme kill abc").command else {
            panic!("not kill");
        };
        assert_eq!(kill.signal, "SIGTERM");

        let Some(Command::Exec(exec)) =
            parsed("trustme exec -c CAP_SYS_ADMIN -e A=b -u 1:2 abc sh -c true").command
        else {
            panic!("not exec");
        };
        assert_eq!(exec.cap, ["CAP_SYS_ADMIN"]);
        assert_eq!(exec.command, ["sh", "-c", "true"]);

        let Some(Command::Update(update)) =
            parsed("trustme update --memory-swap -1 --cpu-quota -1 abc").command
        else {
            panic!("not update");
        };
        assert_eq!(update.memory_swap.as_deref(), Some("-1"));
        assert_eq!(update.cpu_quota, Some(-1));
    }
}
