# Debian's /etc/init.d/gearman-job-server runs Gearfleet: sed -i -f deploy/gearman-job-server.sed that file.
# The program and its first word.
s|^DAEMON=.*|DAEMON=/opt/gearfleet/bin/gearfleet|
s|-- --pid-file|-- gearmand --pid-file|
# start-stop-daemon compares --exec with Python, which runs the program: find it by pid file and name.
s|--exec \$DAEMON|--pidfile $PIDFILE --name gearfleet --startas $DAEMON|
# A restart waits until the port is free.
s|--oknodo|--oknodo --retry TERM/60/KILL/5|
