<?php
// Submit jobs from PHP with php-gearman: php examples/client.php [HOST [PORT]]   (with examples/worker.py running)
$client = new GearmanClient();
$client->addServer($argv[1] ?? '127.0.0.1', (int) ($argv[2] ?? 4730));
$client->setTimeout(30000);

$words = $client->doNormal('count_words', 'the quick brown fox');
if ($client->returnCode() !== GEARMAN_SUCCESS) {
    fwrite(STDERR, $client->error() . "\n");
    exit(1);
}
echo "words: $words\n";

$handle = $client->doBackground('count_words', 'for later', 'letter-43');
echo "queued as $handle\n";
