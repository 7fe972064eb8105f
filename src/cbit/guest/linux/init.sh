#!/bin/sh
# What the kernel starts first: devices, modules, the encrypted disk if its key was injected, a shell.
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev

while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "init: $module cannot be inserted"
done < /etc/modules

if [ -b /dev/vda ]; then
    if unlock /dev/vda disk; then
        rm -f /secret/table
        mount -t romfs -o ro /dev/dm-0 /mnt && cat /mnt/*
    else
        echo "init: /dev/vda stays closed"
    fi
fi

[ -x /etc/rc ] && . /etc/rc
exec setsid cttyhack sh
