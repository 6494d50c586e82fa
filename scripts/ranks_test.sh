#!/usr/bin/env bash
# Training in two processes under real launchers and over a bad network: torchrun, mpirun, srun, and two network namespaces
# with delay and loss. Each must give the bits of one process with two CPU devices. What is not installed is left out with a line;
# `--install` installs it first, on Debian and as root. Takes two minutes beside a build.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --install ]; then
    apt-get install -y openmpi-bin slurm-wlm munge iproute2 iptables
fi
cargo build --release --bin beit2
beit2=${CARGO_TARGET_DIR:-$PWD/target}/release/beit2
work=$(mktemp -d)
passed=0

clean_up() {
    for name in "${spaces[@]:-}"; do
        if [ -n "$name" ]; then ip netns del "$name" || true; fi
    done
    for pid in "${daemons[@]:-}"; do
        if [ -n "$pid" ]; then kill "$pid" 2> /dev/null || true; fi
    done
    wait
    rm -rf "$work"
}
spaces=() daemons=()
trap clean_up EXIT

# One thread each: the ranks share this machine.
export RAYON_NUM_THREADS=1
steps=(--steps 16 --set kmeans_warmup_steps=4 --set checkpoint_every=4 --quiet --no-check)
train=("$beit2" tokenizer train quickstart_tokenizer "${steps[@]}" --join-timeout 60)

# Whether a run has the weights of the reference.
check() {
    if ! cmp -s "$work/reference/last/model.safetensors" "$work/$1/last/model.safetensors"; then
        echo "$1: FAILED, its weights are not those of one process with two devices"
        exit 1
    fi
    passed=$((passed + 1))
    echo "$1: ok"
}

skip() {
    echo "$1: skipped, $2"
}

RAYON_NUM_THREADS=2 "${train[@]}" --device cpu,cpu --out "$work/reference" > /dev/null

# ---- torchrun ---------------------------------------------------------------------------------------------------------------
torchrun=${BEIT2_PYTHON_ENV:-target/python-env}/bin/torchrun
if [ -x "$torchrun" ]; then
    "$torchrun" --standalone --nproc-per-node 2 --no-python "${train[@]}" --out "$work/torchrun" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    check torchrun
    # A rank is killed in the middle of the run: torchrun starts both again, and the run goes on.
    "$torchrun" --standalone --nproc-per-node 2 --max-restarts 2 --no-python "${train[@]}" --out "$work/restarted" > "$work/log" 2>&1 &
    launcher=$!
    while [ ! -e "$work/restarted/last/state.json" ]; do
        kill -0 "$launcher" || { cat "$work/log"; exit 1; }
        sleep 0.05
    done
    pkill -KILL -n -f "^$beit2 tokenizer train .*$work/restarted" || true
    wait "$launcher" || { cat "$work/log"; exit 1; }
    check restarted
else
    skip torchrun "there is no $torchrun (scripts/python_env.sh makes it)"
fi

# ---- mpirun -----------------------------------------------------------------------------------------------------------------
if command -v mpirun > /dev/null; then
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        mpirun --oversubscribe -n 2 "${train[@]}" --out "$work/mpirun" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    check mpirun
else
    skip mpirun "it is not installed (--install)"
fi

# ---- srun: a Slurm of this machine alone -------------------------------------------------------------------------------------
if command -v slurmctld > /dev/null && command -v munged > /dev/null && [ "$(id -u)" = 0 ]; then
    host=$(hostname -s)
    mkdir "$work/state" "$work/spool"
    head -c 1024 /dev/urandom > "$work/munge.key"
    chmod 400 "$work/munge.key"
    munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.sock" --pid-file="$work/munged.pid" \
        --log-file="$work/munged.log" --seed-file="$work/munge.seed" > /dev/null 2>&1 &
    daemons+=($!)
    cat > "$work/slurm.conf" << END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$work/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
END
    export SLURM_CONF=$work/slurm.conf
    slurmctld -D > "$work/slurmctld.log" 2>&1 &
    daemons+=($!)
    slurmd -D > "$work/slurmd.log" 2>&1 &
    daemons+=($!)
    for _ in $(seq 100); do
        if sinfo --noheader -o %T 2> /dev/null | grep -q idle; then break; fi
        sleep 0.1
    done
    # The node's name need not be known to the resolver here.
    MASTER_ADDR=127.0.0.1 timeout 300 srun -n 2 "${train[@]}" --out "$work/srun" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    check srun
else
    skip srun "Slurm is not installed (--install), or this is not root"
fi

# ---- two network namespaces --------------------------------------------------------------------------------------------------
if [ "$(id -u)" = 0 ] && command -v ip > /dev/null && command -v tc > /dev/null && ip netns add beit2-a 2> /dev/null; then
    spaces=(beit2-a beit2-b)
    ip netns add beit2-b
    ip link add beit2-va netns beit2-a type veth peer name beit2-vb netns beit2-b
    ip -n beit2-a addr add 10.77.0.1/24 dev beit2-va
    ip -n beit2-b addr add 10.77.0.2/24 dev beit2-vb
    for name in a b; do
        ip -n "beit2-$name" link set lo up
        ip -n "beit2-$name" link set "beit2-v$name" up
    done
    export BEIT2_RENDEZVOUS_TOKEN=secret
    start() {
        ip netns exec beit2-a "${train[@]}" --rank 0/2 --rendezvous 10.77.0.1:4000 --out "$work/$1" "${@:2}" > "$work/a" 2>&1 &
        first=$!
        ip netns exec beit2-b "${train[@]}" --rank 1/2 --rendezvous 10.77.0.1:4000 --out "$work/$1" "${@:2}" > "$work/b" 2>&1 &
        second=$!
    }
    # Kernels without the emulator of networks may still drop packets at random.
    if tc -n beit2-a qdisc add dev beit2-va root netem delay 2ms 1ms loss 1% 2> /dev/null; then
        what=network-with-delay-and-loss
    elif ip netns exec beit2-a iptables -A INPUT -m statistic --mode random --probability 0.02 -j DROP 2> /dev/null; then
        what=network-with-loss
    else
        what=network
    fi
    start "$what"
    wait "$first" && wait "$second" || { cat "$work/a" "$work/b"; exit 1; }
    check "$what"

    # The wire is cut in the middle of the run: both end with a sentence, and the same commands go on.
    start cut --peer-timeout 3
    while [ ! -e "$work/cut/last/state.json" ]; do
        kill -0 "$first" || { cat "$work/a"; exit 1; }
        sleep 0.02
    done
    ip -n beit2-a link set beit2-va down
    began=$SECONDS
    if wait "$first" || wait "$second"; then
        # On a fast machine the run may have been complete.
        echo "network-cut: the run was complete before the wire was cut"
    else
        for log in a b; do
            grep -q "has not answered for 3 seconds" "$work/$log" || { cat "$work/$log"; exit 1; }
        done
        [ $((SECONDS - began)) -le 15 ] || { echo "it took $((SECONDS - began)) s to notice"; exit 1; }
    fi
    ip -n beit2-a link set beit2-va up
    start cut
    wait "$first" && wait "$second" || { cat "$work/a" "$work/b"; exit 1; }
    mv "$work/cut" "$work/network-that-was-cut"
    check network-that-was-cut
else
    skip network "network namespaces need root, and iproute2 (--install)"
fi

echo "$passed passed"
