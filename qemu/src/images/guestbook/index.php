<?php
// A guest book: what visitors wrote is in PostgreSQL, and the page in Redis until the next of them writes.
$cache = new Redis();
$cache->connect(getenv('CACHE_HOST'), 6379, 2.0);
$database = fn() => new PDO(
    'pgsql:host=' . getenv('DATABASE_HOST') . ';dbname=guestbook',
    'guestbook',
    trim(file_get_contents(getenv('DATABASE_PASSWORD_FILE'))),
);
header('Content-Type: text/plain');
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $entries = $database();
    $entries->exec('CREATE TABLE IF NOT EXISTS entries (id SERIAL PRIMARY KEY, text TEXT NOT NULL)');
    $entries->prepare('INSERT INTO entries (text) VALUES (?)')->execute([file_get_contents('php://input')]);
    $cache->del('page');
    http_response_code(201);
    exit;
}
$page = $cache->get('page');
header('X-Cache: ' . ($page === false ? 'miss' : 'hit'));
if ($page === false) {
    $page = '';
    foreach ($database()->query('SELECT id, text FROM entries ORDER BY id') as $entry) {
        $page .= "{$entry['id']}. {$entry['text']}\n";
    }
    $cache->set('page', $page);
}
echo $page;
