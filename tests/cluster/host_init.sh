#!/bin/bash
# Process 1 of a lab host, in namespaces of its own (tests/cluster/lab.py starts it).
# Arguments: NAME ADDRESS FOLDER TMP, then for each folder that the host sees: SOURCE TARGET ro|rw.
# ADDRESS is where sshd listens; "-": no sshd. Says "ready" when the host is up.
set -eu
name=$1 address=$2 folder=$3 tmp=$4
shift 4
mount --make-rprivate /
hostname "$name"
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts /dev/pts
mkdir -p /run/sshd /run/lab
cp "$folder"/etc/* /run/lab/ # the lab's folder may lie under /tmp, which is hidden below
chmod 600 /run/lab/ssh_host_key /run/lab/shadow
for file in hosts shadow resolv.conf; do
  if [ -e /etc/$file ]; then mount --bind /run/lab/$file "$(readlink -f /etc/$file)"; fi
done
while [ $# -gt 0 ]; do
  case $2 in
    /root/*) at=$folder/root${2#/root} ;;
    /tmp/*) at=$tmp${2#/tmp} ;;
  esac
  mkdir -p "$at"
  mount --bind "$1" "$at"
  mount -o "remount,bind,$3" "$at"
  shift 3
done
mkdir /run/lab/root /run/lab/tmp # a way to both that neither hides
mount --rbind "$folder/root" /run/lab/root
mount --rbind "$tmp" /run/lab/tmp
mount --rbind /run/lab/root /root
mount --rbind /run/lab/tmp /tmp
mount -o remount,bind,ro / # nothing of the machine itself can be changed
cd /
ulimit -n "$(ulimit -Hn)" || true
trap 'exit 0' TERM
if [ "$address" != - ]; then
  /usr/sbin/sshd -D -E /run/lab/sshd.log -f /run/lab/sshd_config &
  until (exec 3<> "/dev/tcp/$address/22") 2> /dev/null; do
    kill -0 $! || { cat /run/lab/sshd.log; exit 1; }
    sleep 0.05
  done
fi
echo ready
# bash as process 1 reaps orphans: Ray's daemons become its children.
while :; do
  sleep 86400 &
  wait $! || true
done
