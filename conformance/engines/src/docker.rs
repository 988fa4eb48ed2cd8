//! The checks of Docker and Podman, whose command lines are the same in all that is used here.
//!
//! Not with an ordinary user's containers: limits (no cgroups are delegated with cgroup v1), devices, privileges. Not with
//! Podman 4.3: restart and health checks by daemon, and what Docker's bridge does. `--privileged` gives capabilities that
//! root of this project's machine has not, so it fails with every runtime.

use crate::check::Check;

/// Podman's own defaults are higher than this machine's root may set, and its network takes plug-ins.
pub const PODMAN_FLAGS: &str = "--network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024";

const ROOTLESS: &[&str] = &["rootless"];
const PODMAN: &[&str] = &["podman", "rootless"];
const DOCKER: &[&str] = &["docker"];

const fn check(name: &'static str, script: &'static str, expect: &'static str) -> Check {
    not_with(&[], name, script, expect)
}

const fn not_with(
    not_with: &'static [&'static str],
    name: &'static str,
    script: &'static str,
    expect: &'static str,
) -> Check {
    Check {
        name,
        script,
        expect,
        not_with,
    }
}

/// The table.
pub const CHECKS: &[Check] = &[
    check("exit-0", "$RUN --rm $IMAGE true", "exit code 0"),
    check("exit-1", "$RUN --rm $IMAGE false", "exit code 1"),
    check(
        "exit-42",
        "$RUN --rm $IMAGE sh -c 'exit 42'",
        "exit code 42",
    ),
    check(
        "exit-126",
        "$RUN --rm $IMAGE /noexec; $RUN --rm $IMAGE /etc",
        "exit code 126",
    ),
    check(
        "exit-127",
        "$RUN --rm $IMAGE nosuch; $RUN --rm $IMAGE /nosuch",
        "exit code 127",
    ),
    check(
        "exit-137",
        "$RUN --rm $IMAGE sh -c 'kill -9 $$; sh -c \"kill -9 \\$\\$\"; exit $?'",
        "exit code 137",
    ),
    check(
        "output",
        "$RUN --rm $IMAGE sh -c 'echo out; sleep 0.3; echo err >&2'",
        "out\n",
    ),
    check("input", "echo typed | $RUN --rm -i $IMAGE cat", "typed\n"),
    check(
        "terminal",
        "$RUN --rm -t $IMAGE sh -c 'tty; test -t 1 && stat -c %a:%u $(tty); ls -l /dev/console | cut -c1'",
        "/dev/pts/0",
    ),
    check(
        "environment",
        "$RUN --rm -e A=b -e C= $IMAGE env | sort | grep -v HOSTNAME",
        "A=b\nC=\n",
    ),
    check(
        "working-directory",
        "$RUN --rm -w /home/user $IMAGE pwd",
        "/home/user\n",
    ),
    check(
        "user",
        "$RUN --rm --user 7:8 $IMAGE id; $RUN --rm --user user $IMAGE sh -c 'id; echo $HOME'",
        "/home/user\n",
    ),
    check(
        "groups",
        "$RUN --rm --group-add 60 --group-add more $IMAGE id -G",
        "50",
    ),
    check(
        "hostname",
        "$RUN --rm --hostname here $IMAGE hostname",
        "here\n",
    ),
    check(
        "read-only",
        "$RUN --rm --read-only $IMAGE sh -c 'touch /x; touch /dev/shm/y && echo shm'",
        "Read-only file system",
    ),
    check(
        "tmpfs",
        "$RUN --rm --tmpfs /t:size=1m,mode=1770 $IMAGE sh -c 'stat -c %a /t; grep -o \"size=[0-9a-z]*\" /proc/mounts | head -1; df /t | tail -1 | cut -c1-5'",
        "1770\n",
    ),
    check(
        "bind-mounts",
        "echo text > $TMP/f; $RUN --rm -v $TMP:/v:ro $IMAGE sh -c 'cat /v/f; touch /v/g'; $RUN --rm -v $TMP:/v $IMAGE touch /v/h; ls $TMP",
        "h\n",
    ),
    check(
        "volumes",
        "$RUN --rm -v ${ID}v:/v $IMAGE sh -c 'echo kept > /v/f'; $RUN --rm -v ${ID}v:/v $IMAGE cat /v/f; $E volume rm ${ID}v > /dev/null",
        "kept\n",
    ),
    check(
        "default-capabilities",
        "$RUN --rm $IMAGE grep Cap /proc/self/status",
        "CapEff",
    ),
    check(
        "capabilities",
        "$RUN --rm --cap-drop ALL --cap-add CHOWN $IMAGE grep Cap /proc/self/status",
        "CapEff:\t0000000000000001",
    ),
    check(
        "capabilities-of-a-user",
        "$RUN --rm --user 1000 $IMAGE grep Cap /proc/self/status",
        "CapBnd",
    ),
    check(
        "no-new-privileges",
        "$RUN --rm --security-opt no-new-privileges $IMAGE grep NoNewPrivs /proc/self/status",
        "NoNewPrivs:\t1",
    ),
    check(
        "seccomp-default",
        "$RUN --rm $IMAGE sh -c 'grep ^Seccomp: /proc/self/status; unshare -U true; mount -t tmpfs x /tmp; echo $?'",
        "Seccomp:\t2",
    ),
    check(
        "seccomp-unconfined",
        "$RUN --rm --security-opt seccomp=unconfined $IMAGE grep ^Seccomp: /proc/self/status",
        "Seccomp:\t0",
    ),
    check(
        "seccomp-profile",
        "echo '{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"mkdir\",\"mkdirat\"],\"action\":\"SCMP_ACT_ERRNO\",\"errnoRet\":5}]}' > $TMP/p; $RUN --rm --security-opt seccomp=$TMP/p $IMAGE mkdir /x",
        "Input/output error",
    ),
    check(
        "masked-paths",
        "$RUN --rm $IMAGE sh -c 'cat /proc/timer_list | wc -c; echo x > /proc/sys/kernel/hostname; grep -c -E \" /proc/[a-z]+ \" /proc/mounts; ls /sys/firmware'",
        "Read-only file system",
    ),
    check(
        "devices",
        "$RUN --rm $IMAGE sh -c 'ls /dev; stat -c %t:%T:%a /dev/null /dev/tty'",
        "1:3:666",
    ),
    not_with(
        ROOTLESS,
        "device",
        "$RUN --rm --device /dev/loop0:/dev/mine:r $IMAGE stat -c %t:%T /dev/mine",
        "7:0",
    ),
    not_with(
        ROOTLESS,
        "device-rules",
        "$RUN --rm --cap-add MKNOD --device-cgroup-rule 'c 10:237 r' $IMAGE sh -c 'mknod /k c 10 237; : < /k && echo opened; : > /k'",
        "opened",
    ),
    not_with(
        ROOTLESS,
        "may-mount",
        "$RUN --rm --cap-add SYS_ADMIN --security-opt seccomp=unconfined $IMAGE sh -c 'mount -t tmpfs x /tmp && echo mounted'",
        "mounted",
    ),
    check(
        "ulimits",
        "$RUN --rm --ulimit nofile=100:200 $IMAGE sh -c 'ulimit -n; ulimit -Hn'",
        "100\n200\n",
    ),
    check(
        "sysctl",
        "$RUN --rm --sysctl net.ipv4.ip_unprivileged_port_start=99 $IMAGE cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "99\n",
    ),
    check(
        "shared-memory-size",
        "$RUN --rm --shm-size 1m $IMAGE sh -c 'df -k /dev/shm | tail -1 | grep -o \" 1024 \"'",
        "1024",
    ),
    check(
        "oom-score",
        "$RUN --rm --oom-score-adj 200 $IMAGE cat /proc/self/oom_score_adj",
        "200\n",
    ),
    not_with(
        ROOTLESS,
        "memory",
        "$RUN --rm --memory 32m --memory-swap 48m --memory-reservation 16m $IMAGE sh -c 'cd /sys/fs/cgroup/memory; cat memory.limit_in_bytes memory.memsw.limit_in_bytes memory.soft_limit_in_bytes'",
        "33554432\n50331648\n16777216\n",
    ),
    not_with(
        ROOTLESS,
        "cpu",
        "$RUN --rm --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 $IMAGE sh -c 'cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus'",
        "50000\n100000\n512\n0\n",
    ),
    not_with(
        ROOTLESS,
        "pids",
        "$RUN --rm --pids-limit 5 $IMAGE sh -c 'cat /sys/fs/cgroup/pids/pids.max; for i in 1 2 3 4 5 6 7; do sleep 1 & done; wait' | sort -u",
        "5\n",
    ),
    not_with(
        ROOTLESS,
        "out-of-memory",
        "$RUN --name $ID --memory 16m --memory-swap 16m $IMAGE sh -c 'tail /dev/zero; exit $?'; $E inspect --format '{{.State.ExitCode}}' $ID",
        "137",
    ),
    check("pid-namespace", "$RUN --rm $IMAGE sh -c 'echo $$'", "1\n"),
    check(
        "host-pid-namespace",
        "$RUN --rm --pid host $IMAGE sh -c 'test $$ -gt 1 && echo many'",
        "many\n",
    ),
    check(
        "shared-namespaces",
        "$RUN -d --name $ID --ipc shareable $IMAGE sleep 60 > /dev/null; $RUN --rm --pid container:$ID --ipc container:$ID $IMAGE sh -c 'ps | grep -q \"[s]leep 60\" && echo seen'",
        "seen\n",
    ),
    not_with(
        PODMAN,
        "loopback",
        "$RUN --rm --network none $IMAGE sh -c 'ip addr | grep -c inet; ls /sys/class/net'",
        "lo",
    ),
    check(
        "detached-and-logs",
        "$RUN -d --name $ID $IMAGE sh -c 'echo one; sleep 0.3; echo two >&2' > /dev/null; $E wait $ID; $E logs $ID",
        "one\ntwo\n",
    ),
    check(
        "stop",
        "$RUN -d --name $ID $IMAGE sh -c 'trap \"echo stopping; exit 7\" TERM; while :; do sleep 0.1; done' > /dev/null; sleep 0.5; $E stop -t 5 $ID; $E inspect --format '{{.State.Status}} {{.State.ExitCode}}' $ID; $E logs $ID",
        "exited 7\nstopping\n",
    ),
    check(
        "stop-by-force",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E stop -t 1 $ID; $E inspect --format '{{.State.Status}} {{.State.ExitCode}}' $ID",
        "exited 137",
    ),
    check(
        "kill",
        "$RUN -d --name $ID $IMAGE sh -c 'trap \"exit 9\" USR1; while :; do sleep 0.1; done' > /dev/null; sleep 0.5; $E kill -s USR1 $ID; $E wait $ID",
        "9\n",
    ),
    not_with(
        ROOTLESS,
        "pause",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E pause $ID; $E inspect --format '{{.State.Status}}' $ID; $E exec $ID true; $E unpause $ID; $E inspect --format '{{.State.Status}}' $ID",
        "running\n",
    ),
    check(
        "restart",
        "$RUN -d --name $ID $IMAGE sh -c 'echo here; sleep 60' > /dev/null; sleep 0.3; $E restart -t 0 $ID; sleep 0.3; $E logs $ID; $E inspect --format '{{.State.Status}}' $ID",
        "here\nhere\nrunning\n",
    ),
    check(
        "start-again",
        "$RUN --name $ID $IMAGE sh -c 'echo x >> /f; cat /f'; $E start -a $ID",
        "x\nx\nx\n",
    ),
    not_with(
        PODMAN,
        "restart-policy",
        "$RUN -d --name $ID --restart on-failure:2 $IMAGE sh -c 'echo again; exit 3' > /dev/null; sleep 4; $E inspect --format '{{.RestartCount}} {{.State.ExitCode}}' $ID; $E logs $ID",
        "2 3\nagain\nagain\nagain\n",
    ),
    not_with(
        PODMAN,
        "health",
        "$RUN -d --name $ID --health-cmd 'test -e /ok' --health-interval 1s --health-retries 1 $IMAGE sh -c 'sleep 2; touch /ok; sleep 60' > /dev/null; sleep 1.6; $E inspect --format '{{.State.Health.Status}}' $ID; sleep 3; $E inspect --format '{{.State.Health.Status}}' $ID",
        "healthy\n",
    ),
    not_with(
        DOCKER,
        "health-by-hand",
        "$RUN -d --name $ID --health-cmd 'test -e /ok' --health-interval disable $IMAGE sleep 60 > /dev/null; $E healthcheck run $ID; echo $?; $E exec $ID touch /ok; $E healthcheck run $ID; echo $?",
        "0\n",
    ),
    not_with(
        PODMAN,
        "published-port",
        "$RUN -d --name $ID -p 127.0.0.1:8088:80 $IMAGE sh -c 'mkdir /w; echo page > /w/index.html; httpd -f -p 80 -h /w' > /dev/null; sleep 1; curl -s --max-time 5 http://127.0.0.1:8088/; $E port $ID",
        "page\n",
    ),
    not_with(
        PODMAN,
        "bridge",
        "$RUN --rm $IMAGE sh -c 'ls /sys/class/net; cat /etc/resolv.conf | wc -l; ip addr show eth0 | grep -c 172.17'",
        "eth0",
    ),
    not_with(
        ROOTLESS,
        "stats",
        "$RUN -d --name $ID --memory 32m --memory-swap 32m $IMAGE sleep 60 > /dev/null; $E stats --no-stream --format '{{.Name}} {{.PIDs}} {{.MemUsage}}' $ID | sed 's/ [0-9.]*[KkM]i*B \\/ / USED \\/ /'",
        "NAME 1",
    ),
    not_with(
        ROOTLESS,
        "update",
        "$RUN -d --name $ID --memory 32m --memory-swap 64m $IMAGE sleep 60 > /dev/null; $E update --memory 48m --memory-swap 64m --cpu-shares 256 $ID; $E exec $ID cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.shares",
        "50331648\n256\n",
    ),
    check(
        "top",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E top $ID | grep -c 'sleep 60'",
        "1\n",
    ),
    check(
        "exec",
        "$RUN -d --name $ID -e A=b --user 1000 $IMAGE sleep 60 > /dev/null; $E exec $ID sh -c 'id; echo $A; pwd; exit 5'",
        "exit code 5",
    ),
    check(
        "exec-flags",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E exec -u 7:8 -w /tmp -e X=y $ID sh -c 'id; pwd; echo $X'",
        "uid=7 gid=8",
    ),
    check(
        "exec-terminal",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; script -qec \"$E exec -it $ID sh -c 'tty; stty size'\" /dev/null < /dev/null",
        "/dev/pts/",
    ),
    check(
        "exec-input",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; echo typed | $E exec -i $ID cat",
        "typed\n",
    ),
    check(
        "exec-detached",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E exec -d $ID touch /made; sleep 0.5; $E exec $ID ls /made",
        "/made\n",
    ),
    check(
        "exec-missing",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E exec $ID nosuch; echo $?; $E exec $ID /etc",
        "exit code 126",
    ),
    check(
        "copy",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; echo text > $TMP/f; $E cp $TMP/f $ID:/f; $E exec $ID cat /f",
        "text\n",
    ),
    check(
        "remove-by-force",
        "$RUN -d --name $ID $IMAGE sleep 60 > /dev/null; $E rm -f $ID; $E inspect $ID",
        "exit code 1",
    ),
    not_with(
        DOCKER,
        "user-namespace",
        "$RUN --rm --uidmap 0:1:1000 --gidmap 0:1:1000 $IMAGE sh -c 'id -u; cat /proc/self/uid_map; touch /tmp/f; stat -c %u:%g /tmp/f'",
        "0:0\n",
    ),
    not_with(
        DOCKER,
        "umask",
        "$RUN --rm --umask 0077 $IMAGE sh -c 'umask; touch /f; stat -c %a /f'",
        "0077\n600\n",
    ),
    not_with(
        DOCKER,
        "init-in-timezone",
        "$RUN --rm --tz UTC $IMAGE date +%Z",
        "UTC",
    ),
    check(
        "cgroup-namespace",
        "$RUN --rm --cgroupns private $IMAGE sh -c 'cut -d: -f3 /proc/self/cgroup | sort -u'",
        "/\n",
    ),
    check(
        "annotations",
        "$RUN --rm --label a=b $IMAGE true",
        "exit code 0",
    ),
];
