//! The checks of containerd, by ctr.

use crate::check::Check;

const fn check(name: &'static str, script: &'static str, expect: &'static str) -> Check {
    Check {
        name,
        script,
        expect,
        not_with: &[],
    }
}

/// The table.
pub const CHECKS: &[Check] = &[
    check("exit-0", "$RUN --rm $IMAGE $ID true", "exit code 0"),
    check("exit-1", "$RUN --rm $IMAGE $ID false", "exit code 1"),
    check(
        "exit-42",
        "$RUN --rm $IMAGE $ID sh -c 'exit 42'",
        "exit code 42",
    ),
    check(
        "exit-137",
        "$RUN --rm $IMAGE $ID sh -c 'sh -c \"kill -9 \\$\\$\"; exit $?'",
        "exit code 137",
    ),
    check(
        "missing-program",
        "$RUN --rm $IMAGE $ID nosuch",
        "executable file not found in $PATH",
    ),
    check(
        "missing-path",
        "$RUN --rm $IMAGE $ID /nosuch",
        "no such file or directory",
    ),
    check(
        "no-program",
        "$RUN --rm $IMAGE $ID /noexec; $RUN --rm $IMAGE ${ID}b /etc",
        "permission denied",
    ),
    check(
        "output",
        "$RUN --rm $IMAGE $ID sh -c 'echo out; sleep 0.3; echo err >&2'",
        "out\n",
    ),
    check(
        "input",
        "echo typed | $RUN --rm $IMAGE $ID head -n 1",
        "typed\n",
    ),
    check(
        "environment",
        "$RUN --rm --env A=b $IMAGE $ID env | sort",
        "A=b\n",
    ),
    check(
        "working-directory",
        "$RUN --rm --cwd /tmp $IMAGE $ID pwd",
        "/tmp\n",
    ),
    check(
        "read-only",
        "$RUN --rm --read-only $IMAGE $ID touch /x",
        "Read-only file system",
    ),
    check(
        "terminal",
        "script -qec \"$RUN --rm -t $IMAGE $ID sh -c 'tty; stty size'\" /dev/null < /dev/null",
        "/dev/pts/0",
    ),
    check(
        "mounts",
        "echo text > $TMP/f; $RUN --rm --mount type=bind,src=$TMP,dst=/v,options=rbind:ro $IMAGE $ID sh -c 'cat /v/f; touch /v/g'",
        "Read-only file system",
    ),
    check(
        "tmpfs",
        "$RUN --rm --mount type=tmpfs,src=tmpfs,dst=/t,options=size=1m:mode=1770 $IMAGE $ID stat -c %a /t",
        "1770\n",
    ),
    check(
        "capabilities",
        "$RUN --rm $IMAGE $ID grep Cap /proc/self/status",
        "CapEff",
    ),
    check(
        "capabilities-added",
        "$RUN --rm --cap-add CAP_SYS_ADMIN --cap-drop CAP_CHOWN $IMAGE $ID grep CapEff /proc/self/status",
        "CapEff",
    ),
    check(
        "privileged",
        "$RUN --rm --privileged $IMAGE $ID sh -c 'mount -t tmpfs x /tmp && echo mounted'",
        "mounted",
    ),
    check(
        "no-new-privileges",
        "$RUN --rm $IMAGE $ID grep NoNewPrivs /proc/self/status",
        "NoNewPrivs:\t1",
    ),
    check(
        "seccomp",
        "$RUN --rm --seccomp $IMAGE $ID sh -c 'grep ^Seccomp: /proc/self/status; unshare -U true'",
        "Seccomp:\t2",
    ),
    check(
        "masked-paths",
        "$RUN --rm $IMAGE $ID sh -c 'cat /proc/timer_list | wc -c; echo x > /proc/sys/kernel/hostname; grep -c -E \" /proc/[a-z]+ \" /proc/mounts'",
        "Read-only file system",
    ),
    check(
        "devices",
        "$RUN --rm $IMAGE $ID sh -c 'ls /dev; stat -c %t:%T:%a /dev/null'",
        "1:3:666",
    ),
    check(
        "device",
        "$RUN --rm --device /dev/loop0 $IMAGE $ID stat -c %t:%T /dev/loop0",
        "7:0",
    ),
    check(
        "memory",
        "$RUN -d --memory-limit 33554432 $IMAGE $ID sleep 60; cat /sys/fs/cgroup/memory$CG/memory.limit_in_bytes",
        "33554432\n",
    ),
    check(
        "cpu",
        "$RUN -d --cpu-quota 50000 --cpu-period 100000 $IMAGE $ID sleep 60; cat /sys/fs/cgroup/cpu$CG/cpu.cfs_quota_us",
        "50000\n",
    ),
    check(
        "out-of-memory",
        "$RUN --memory-limit 16777216 $IMAGE $ID sh -c 'tail /dev/zero; exit $?'",
        "exit code 137",
    ),
    check(
        "host-network",
        "$RUN --rm --net-host $IMAGE $ID sh -c 'ls /sys/class/net | head -1'",
        "exit code 0",
    ),
    check(
        "pid-namespace",
        "$RUN --rm $IMAGE $ID sh -c 'echo $$; ls /proc | grep -c ^[0-9]'",
        "1\n",
    ),
    check(
        "joined-namespace",
        "$RUN -d $IMAGE $ID sleep 60; pid=$($E task ls | sed -n \"s/^$ID *\\([0-9]*\\) .*/\\1/p\"); $RUN --rm --with-ns pid:/proc/$pid/ns/pid $IMAGE ${ID}b ps | grep -c 'sleep 60'",
        "1\n",
    ),
    check(
        "root-file-system",
        "mkdir -p $TMP/r; tar -xf ../rootfs.tar -C $TMP/r; $RUN --rm --rootfs $TMP/r $ID /bin/sh -c 'echo rooted; /bin/touch /made'; ls $TMP/r/made",
        "rooted\n",
    ),
    check(
        "user-namespace",
        "$RUN --rm --uidmap 0:100000:1000 --gidmap 0:100000:1000 $IMAGE $ID sh -c 'id -u; cat /proc/self/uid_map'",
        "100000",
    ),
    check(
        "exec",
        "$RUN -d $IMAGE $ID sleep 60; $E task exec --exec-id e $ID sh -c 'id -u; exit 5'",
        "exit code 5",
    ),
    check(
        "exec-flags",
        "$RUN -d $IMAGE $ID sleep 60; $E task exec --exec-id e --user 7 --cwd /tmp $ID sh -c 'id; pwd'",
        "/tmp\n",
    ),
    check(
        "exec-missing",
        "$RUN -d $IMAGE $ID sleep 60; $E task exec --exec-id e $ID nosuch",
        "executable file not found in $PATH",
    ),
    check(
        "exec-terminal",
        "$RUN -d $IMAGE $ID sleep 60; script -qec \"$E task exec -t --exec-id e $ID tty\" /dev/null < /dev/null",
        "/dev/pts/0",
    ),
    check(
        "pause",
        "$RUN -d $IMAGE $ID sleep 60; $E task pause $ID; $E task ls | grep -o PAUSED; $E task resume $ID; $E task ls | grep -o RUNNING",
        "PAUSED\nRUNNING\n",
    ),
    check(
        "processes",
        "$RUN -d $IMAGE $ID sleep 60; $E task ps $ID | tail -n +2 | wc -l",
        "1\n",
    ),
    check(
        "metrics",
        "$RUN -d $IMAGE $ID sleep 60; $E task metrics $ID | sed 's/\\[.*\\]/LIST/; s/[0-9]\\{2,\\}/N/g; s/  */ /g' | grep -E '^(ID|memory.limit|pids|cpu)|limit'",
        "pids",
    ),
    check(
        "kill",
        "$RUN -d $IMAGE $ID sleep 60; $E task kill -s KILL $ID; sleep 0.5; $E task ls | grep -o STOPPED; $E task delete $ID",
        "exit code 137",
    ),
    check(
        "terminate",
        "$RUN -d $IMAGE $ID sh -c 'trap \"exit 7\" TERM; while :; do sleep 0.1; done'; sleep 0.5; $E task kill -s TERM $ID; sleep 0.5; $E task delete $ID",
        "exit code 7",
    ),
    check(
        "pid-file",
        "$RUN -d --pid-file $TMP/pid $IMAGE $ID sleep 60; test \"$(cat $TMP/pid)\" = \"$($E task ls | sed -n \"s/^$ID *\\([0-9]*\\) .*/\\1/p\")\" && echo same",
        "same\n",
    ),
];
