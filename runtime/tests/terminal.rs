//! Terminals, by the built program.

mod support;

use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;
use support::Bundle;

/// Receives the master that a runtime sends to a console socket.
fn receive(listener: &UnixListener) -> OwnedFd {
    let (connection, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(&connection, &mut slices, &mut ancillary, RecvFlags::empty()).unwrap();
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor")
}

/// Reads from a master until the other side is closed.
fn read_all(master: OwnedFd) -> String {
    let mut file = std::fs::File::from(master);
    let mut bytes = Vec::new();
    // EIO at the end, once nobody has the terminal open.
    let _ = file.read_to_end(&mut bytes);
    support::text(&bytes).replace('\r', "")
}

#[test]
fn a_detached_terminal_goes_to_the_console_socket() {
    let script = "tty; stty size; stat -c '%u %t:%T' /dev/console; stat -c %u $(tty); id -u";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let socket = bundle.file("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let line = format!(
        "create --bundle BUNDLE --console-socket {} ID",
        socket.display()
    );
    bundle.ok(&line);
    let master = receive(&listener);
    bundle.ok("start ID");
    assert_eq!(
        read_all(master),
        "/dev/pts/0\n33 77\n1000 88:0\n1000\n1000\n"
    );

    bundle.config["process"]["terminal"] = false.into();
    bundle.ok("delete -f ID");
    assert!(bundle.fails(&line, 1).contains("cannot use console socket"));
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    let socket = bundle.file("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut exec = bundle.command("exec --detach --tty --user 1000");
    exec.arg("--console-socket")
        .arg(&socket)
        .arg(&bundle.id)
        .args(["sh", "-c", "tty; stat -c %u $(tty); echo > /dev/tty"]);
    assert!(exec.status().unwrap().success());
    assert_eq!(read_all(receive(&listener)), "/dev/pts/0\n1000\n\n");
}

#[test]
fn in_the_foreground_the_callers_terminal_is_used() {
    let mut bundle = Bundle::new(&["sh", "-c", "stty size; read line; echo got $line; exit 3"]);
    bundle.config["process"]["terminal"] = true.into();
    bundle.write();
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let size = rustix::termios::Winsize {
        ws_row: 21,
        ws_col: 43,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let slave = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut run = bundle.command("run --bundle BUNDLE ID");
    run.stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap());
    let mut child = run.spawn().unwrap();
    drop((slave, run));
    rustix::io::write(&master, b"hello\n").unwrap();
    let printed = read_all(master);
    assert_eq!(support::wait(&mut child).code(), Some(3));
    assert!(printed.contains("21 43\n"), "{printed}");
    assert!(printed.contains("got hello\n"), "{printed}");
    bundle.assert_gone();
}
