#!/usr/bin/env perl
# Do jobs from Perl with Gearman::Worker: perl examples/worker.pl [HOST:PORT]
use strict;
use warnings;
use Gearman::Worker;

my $worker = Gearman::Worker->new(job_servers => [$ARGV[0] // '127.0.0.1:4730']);
$worker->register_function(
    count_words => sub {
        my ($job) = @_;
        my @words = split ' ', $job->arg;
        return scalar @words;
    }
);
$worker->work while 1;
