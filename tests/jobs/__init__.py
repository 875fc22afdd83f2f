"""One job's life, without packets, clocks or disks."""
