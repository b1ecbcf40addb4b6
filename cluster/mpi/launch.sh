#!/usr/bin/env bash
# Train a job on the hosts of a hostfile, and go on from the newest checkpoint when a host or a rank was lost.
#
#   cluster/mpi/launch.sh JOB_FILE RUN_DIRECTORY
#
# Needs: dtrain and an MPI (`pip install 'dtrain[mpich]'`, or dtrain[mpi] and one of your own) at the same path on every
# host, and JOB_FILE, its data and RUN_DIRECTORY on a file system that all share. Starting it again with the same
# RUN_DIRECTORY goes on where the run was. Exit codes are those of dtrain: 0 done, 2 bad input, 3 failed with a
# checkpoint kept, 4 numerics refused, 130 and 143 stopped by a signal.
set -uo pipefail

# ---- settings; each can be given in the environment instead --------------------------------------------------------
MPIEXEC=${MPIEXEC:-mpiexec}        # of MPICH or Open MPI; which one it is, it says itself
HOSTFILE=${HOSTFILE:-}             # empty: hostfile.mpich or hostfile.openmpi beside this script
AGENT=${AGENT:-ssh}                # what starts a command on another host: AGENT HOST COMMAND
ATTEMPTS=${ATTEMPTS:-5}            # how often to start in all
PAUSE=${PAUSE:-10}                 # seconds between two attempts
# MPIEXEC_OPTIONS: further words for mpiexec, such as: --mca btl_tcp_if_include eth0
read -r -a options <<<"${MPIEXEC_OPTIONS:-}"
# ---------------------------------------------------------------------------------------------------------------------

fail() {
  echo "launch.sh: $1" >&2
  exit 2
}

[ $# -eq 2 ] || fail "expected JOB_FILE RUN_DIRECTORY, got $# arguments"
job=$1
run=$2
dtrain=$(command -v dtrain) || fail "dtrain is not on the PATH; activate the environment that has it"
command -v "$MPIEXEC" >/dev/null || fail "$MPIEXEC is not on the PATH; pip install 'dtrain[mpich]', or set MPIEXEC"
case $("$MPIEXEC" --version 2>/dev/null) in
  *"Open MPI"* | *OpenRTE* | *PRRTE*) flavour=openmpi ;;
  *HYDRA* | *MPICH*) flavour=mpich ;;
  *) fail "$MPIEXEC is neither of MPICH nor of Open MPI; set MPIEXEC" ;;
esac
HOSTFILE=${HOSTFILE:-$(dirname "$0")/hostfile.$flavour}
[ -r "$HOSTFILE" ] || fail "$HOSTFILE cannot be read; copy cluster/mpi/hostfile.$flavour and set HOSTFILE"

# A signal is for the run: it finishes the step and writes a checkpoint, and this script leaves with 130 or 143. mpiexec
# is only told if the run is not there yet: MPICH's and Open MPI's both may kill the ranks before they have finished.
child=
stopped=
stop() {
  stopped=$1
  [ -n "$child" ] || return 0
  "$dtrain" stop "$run" --no-wait >/dev/null 2>&1 || kill -INT "$child" 2>/dev/null
}
set -m # mpiexec is a process group of its own: a Ctrl-C does not reach it
trap 'stop 143' TERM
trap 'stop 130' INT
present=$(mktemp)
trap 'rm -f "$present"' EXIT

# Write the lines of the hosts that answer to $present, and set ranks. Fewer hosts are slower, and change no bit.
look() {
  : >"$present"
  ranks=0
  while read -r line; do
    host=${line%%[: ]*}
    if ! "$AGENT" -oBatchMode=yes -oConnectTimeout=5 "$host" true </dev/null; then
      echo "launch.sh: $host does not answer; going on without it" >&2
      continue
    fi
    echo "$line" >>"$present"
    count=${line##*[:=]}
    [ "$count" != "$line" ] || count=1
    ranks=$((ranks + count))
  done < <(grep -Ev '^[[:space:]]*(#|$)' "$HOSTFILE")
  [ "$ranks" -gt 0 ] || fail "no host of $HOSTFILE answers; try: $AGENT HOST true"
}

# Run mpiexec on the hosts that answer, with the words given; set code to its exit code.
launch() {
  if [ $flavour = mpich ]; then
    # With more ranks than cores, waiting ranks have to give way at once.
    export MPIR_CVAR_POLLS_BEFORE_YIELD=${MPIR_CVAR_POLLS_BEFORE_YIELD:-1}
    set -- -launcher ssh -launcher-exec "$(command -v "$AGENT")" -f "$present" -n "$ranks" "${options[@]}" "$@"
  else
    [ "$(id -u)" -ne 0 ] || set -- --allow-run-as-root "$@"
    # A rank must not be kept on one core: its helpers would be too.
    set -- --mca plm_rsh_agent "$(command -v "$AGENT")" --hostfile "$present" --bind-to none -n "$ranks" \
      "${options[@]}" "$@"
  fi
  "$MPIEXEC" "$@" </dev/null &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`, and not the run
    wait "$child"
    code=$?
  done
  child=
}

# Print the exit code with which the run itself has ended; nothing if MPI ended it.
ended() {
  sed -n 's/^ *"exit_code": \([0-9]*\),\{0,1\}$/\1/p' "$run/result.json" 2>/dev/null
}

attempt=1
until
  look
  if [ -e "$run/job.yaml" ]; then
    launch "$dtrain" resume "$run"
  else
    launch "$dtrain" run "$job" --run-dir "$run"
  fi
  # Open MPI's mpiexec may leave before the last rank has: that one writes a checkpoint, and then the run can be resumed.
  [ -n "$(ended)" ] || "$dtrain" stop "$run" >/dev/null 2>&1
  said=$(ended)
  # What mpiexec says is not enough: Open MPI's may leave with 0 when it has lost a host, and with another code when the
  # run has done without a rank.
  [ "$said" = 0 ]
do
  [ -z "$stopped" ] || exit "$stopped"
  case $code in 2 | 4 | 130 | 143) exit "$code" ;; esac # trying again would not change these
  # When a rank dies, Open MPI stops the others, and the run says so (143); nobody has asked for it, so it goes on.
  case $said in 2 | 3 | 4) exit "$said" ;; esac
  if [ "$attempt" -ge "$ATTEMPTS" ]; then
    echo "launch.sh: given up after $attempt attempts; the newest checkpoint is in $run/checkpoints" >&2
    exit 3
  fi
  attempt=$((attempt + 1))
  echo "launch.sh: mpiexec ended with code $code; attempt $attempt of $ATTEMPTS in $PAUSE s" >&2
  sleep "$PAUSE" &
  wait $!
  [ -z "$stopped" ] || exit "$stopped"
done
