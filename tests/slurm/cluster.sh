#!/bin/bash
# A real Slurm of two nodes on this machine, for the tests: loopback only, its own munge key and socket, no systemd, no cgroups,
# no accounting. Debian: apt-get install slurmctld slurmd slurm-client munge. Run as root:
#   tests/slurm/cluster.sh up FOLDER [FIRST_PORT]     then  export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/cluster.sh down FOLDER
# State, logs and process ids are in FOLDER; `down` ends exactly the daemons that `up` has started.
set -euo pipefail
action=$1 folder=$2 port=${3:-16800}
num_nodes=2 cpus=4

up() {
  mkdir -p "$folder"/{state,log,run,munge}
  chown munge:munge "$folder/munge"
  chmod 755 "$folder" "$folder/munge"
  dd if=/dev/urandom of="$folder/munge/munge.key" bs=1 count=1024 status=none
  chown munge:munge "$folder/munge/munge.key"
  chmod 400 "$folder/munge/munge.key"
  runuser -u munge -- /usr/sbin/munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/munge.key" \
    --pid-file="$folder/munge/munged.pid" --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/munged.seed" \
    --num-threads=2
  for _ in $(seq 50); do
    munge --socket="$folder/munge/socket" --no-input >/dev/null 2>&1 && break
    sleep 0.1
  done
  configure >"$folder/slurm.conf"
  touch "$folder"/gpu{0..7}
  echo "NodeName=node9 Name=gpu Type=h100 File=$folder/gpu[0-7]" >"$folder/gres.conf"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c
  for i in $(seq $num_nodes) 9; do
    mkdir -p "$folder/spool.node$i"
    slurmd -N "node$i"
  done
  for _ in $(seq 100); do
    idle=$(sinfo --noheader --states=idle --format=%D 2>/dev/null | awk '{ s += $1 } END { print s + 0 }')
    [ "$idle" = $((num_nodes + 1)) ] && return
    sleep 0.2
  done
  tail -20 "$folder"/log/*.log >&2
  exit 1
}

configure() {
  # cred_expire: a requeued job starts again after that many seconds. The eight GPUs of node9 are empty files.
  cat <<EOF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=15
InactiveLimit=0
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmctldDebug=info
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmdSpoolDir=$folder/spool.%n
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmdDebug=info
EOF
  for i in $(seq $num_nodes); do
    echo "NodeName=node$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=4000 State=UNKNOWN"
  done
  echo "NodeName=node9 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 9)) CPUs=32 RealMemory=4000 Gres=gpu:h100:8"
  echo "PartitionName=main Nodes=node[1-$num_nodes] Default=YES MaxTime=INFINITE State=UP"
  echo "PartitionName=gpu Nodes=node9 MaxTime=1-00:00:00 State=UP"
}

down() {
  export SLURM_CONF=$folder/slurm.conf
  # Jobs first: a slurmd that cannot report the end of one to its controller does not leave.
  scancel --user=root 2>/dev/null || true
  for _ in $(seq 300); do
    [ -z "$(squeue --noheader 2>/dev/null)" ] && break
    sleep 0.1
  done
  local pids=() file
  for file in "$folder"/run/*.pid "$folder/munge/munged.pid"; do
    [ -s "$file" ] && pids+=("$(cat "$file")")
  done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for _ in $(seq 50); do
    kill -0 "${pids[@]}" 2>/dev/null || return 0
    sleep 0.1
  done
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  sleep 1
  kill -0 "${pids[@]}" 2>/dev/null || return 0
  echo "still running: ${pids[*]}" >&2
  exit 1
}

"$action"
