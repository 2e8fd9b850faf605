-- The log in SQLite: its schema, version by version, and the queries.

-- name: schema_18()
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,  -- the only order
    kind        TEXT NOT NULL,
    key         TEXT NOT NULL,                      -- at most one row of a kind has it
    episode_id  TEXT,
    route       TEXT,
    at_s        REAL NOT NULL,                      -- Unix time; informative
    owner       INTEGER NOT NULL,                   -- the process that wrote it
    body        TEXT NOT NULL,                      -- the event as JSON
    response_id TEXT                                -- that an outcome or feedback names
);
CREATE UNIQUE INDEX events_once ON events (kind, key);
CREATE INDEX outcomes_by_response ON events (response_id)
    WHERE kind = 'outcome';
CREATE INDEX feedback_by_episode ON events (episode_id) WHERE kind = 'feedback';
CREATE INDEX feedback_by_response ON events (response_id)
    WHERE kind = 'feedback' AND episode_id IS NULL;
CREATE INDEX requests_by_owner ON events (owner) WHERE kind = 'request';
CREATE INDEX requests_by_route ON events (route) WHERE kind = 'request';
CREATE INDEX counted ON events (route, seq) WHERE kind = 'requests_counted';
CREATE INDEX decisions ON events (seq) WHERE (
    kind = 'agent_planned' OR kind = 'alarm_raised' OR kind = 'enforcement_paused' OR kind =
    'enforcement_resumed' OR kind = 'epoch_began' OR kind = 'policy_published'
);
CREATE INDEX jobs ON events (seq) WHERE (kind = 'job_ran' OR kind = 'label_wanted');
CREATE INDEX reviews ON events (seq) WHERE (
    kind = 'review_asked' OR kind = 'review_drawn' OR kind = 'review_leased' OR kind = 'review_returned' OR kind
    = 'review_verdict'
);
CREATE INDEX holds ON events (seq) WHERE (
    kind = 'enforcement_paused' OR kind = 'enforcement_resumed' OR kind = 'incident_decided' OR kind =
    'incident_opened' OR kind = 'override_ended' OR kind = 'override_set'
);

CREATE TABLE owners (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    lock      TEXT NOT NULL UNIQUE,                -- part of its lock file's name
    pid       INTEGER NOT NULL,                    -- for people; never used to decide
    started_s REAL NOT NULL,
    settled   INTEGER NOT NULL DEFAULT 0           -- place up to which each of its requests has its outcome
);
CREATE TABLE leases (
    job     TEXT PRIMARY KEY,
    owner   INTEGER NOT NULL,   -- the process that holds the job, or held it last
    token   INTEGER NOT NULL,   -- grows with each holder: what an earlier one still wants to write is refused
    beat    INTEGER NOT NULL,   -- grows with each renewal
    held    INTEGER NOT NULL,
    until_s REAL NOT NULL       -- Unix time; for people: clocks step, so beats decide
);
CREATE TABLE artefacts (
    address TEXT PRIMARY KEY,   -- made of the content
    body    TEXT NOT NULL,
    at_s    REAL NOT NULL       -- Unix time; informative
);
CREATE TABLE chain (
    place         INTEGER PRIMARY KEY,  -- 1 says where the chain begins
    seq           INTEGER,              -- of the event; null: the beginning
    form          INTEGER NOT NULL,     -- how it is digested
    kept          BLOB NOT NULL,        -- digest of the event without people's words
    whole         BLOB,                 -- digest of the event with them; null: it holds none
    answers       BLOB,                 -- digest of the answers in it; null: there are none
    answers_salt  BLOB,                 -- null though there is a digest: erased
    comments      BLOB,
    comments_salt BLOB,
    link          BLOB NOT NULL,        -- digest of all of this and of the link before
    note          TEXT                  -- what the beginning says
);
CREATE UNIQUE INDEX chain_by_event ON chain (seq);

-- Caches, built from the log, which may be emptied at any time: sums by route, class, version and hour
-- (store/routes/rollups.py), and what each route's estimates are made of (assurance/estimate.py), as JSON.
CREATE TABLE rollups (
    grain       INTEGER NOT NULL,   -- 0: by the hour; by the day: 1 routes, 2 classes, 3 versions, 4 tenants
    route       TEXT NOT NULL,
    query_class TEXT NOT NULL,
    version     TEXT NOT NULL,
    hour        INTEGER NOT NULL,   -- since 1970, UTC
    n_requests INTEGER NOT NULL DEFAULT 0,
    n_governed INTEGER NOT NULL DEFAULT 0,
    n_failed INTEGER NOT NULL DEFAULT 0,
    n_degraded INTEGER NOT NULL DEFAULT 0,
    n_stopped INTEGER NOT NULL DEFAULT 0,
    n_full INTEGER NOT NULL DEFAULT 0,
    n_audits INTEGER NOT NULL DEFAULT 0,
    n_disagreeing INTEGER NOT NULL DEFAULT 0,
    n_pending INTEGER NOT NULL DEFAULT 0,
    n_lost INTEGER NOT NULL DEFAULT 0,
    n_gained INTEGER NOT NULL DEFAULT 0,
    n_full_marked INTEGER NOT NULL DEFAULT 0,
    n_full_right INTEGER NOT NULL DEFAULT 0,
    n_stopped_marked INTEGER NOT NULL DEFAULT 0,
    n_stopped_right INTEGER NOT NULL DEFAULT 0,
    n_live_marked INTEGER NOT NULL DEFAULT 0,
    n_live_right INTEGER NOT NULL DEFAULT 0,
    whole_tokens INTEGER NOT NULL DEFAULT 0,
    would_tokens INTEGER NOT NULL DEFAULT 0,
    saved_tokens INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    overhead_tokens INTEGER NOT NULL DEFAULT 0,
    n_priced INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0,
    overhead_usd REAL NOT NULL DEFAULT 0,
    saved_usd REAL NOT NULL DEFAULT 0,
    would_save_usd REAL NOT NULL DEFAULT 0,
    duration_s REAL NOT NULL DEFAULT 0,
    stopped_marked_excess REAL NOT NULL DEFAULT 0,
    pair_weight REAL NOT NULL DEFAULT 0,
    pair_squares REAL NOT NULL DEFAULT 0,
    lost_weight REAL NOT NULL DEFAULT 0,
    gained_weight REAL NOT NULL DEFAULT 0,
    pending_weight REAL NOT NULL DEFAULT 0,
    enforced_weight REAL NOT NULL DEFAULT 0,
    enforced_tokens REAL NOT NULL DEFAULT 0,
    certified_tokens REAL NOT NULL DEFAULT 0,
    drawn_weight REAL NOT NULL DEFAULT 0,
    drawn_tokens REAL NOT NULL DEFAULT 0,
    drawn_squares REAL NOT NULL DEFAULT 0,
    drawn_square_tokens REAL NOT NULL DEFAULT 0,
    drawn_square_squares REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (grain, route, query_class, version, hour)
) WITHOUT ROWID;
CREATE INDEX rollups_by_hour ON rollups (hour) WHERE grain = 0;
CREATE TABLE rolled (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    format INTEGER NOT NULL,   -- of what is summed
    seq    INTEGER NOT NULL,   -- place in the log up to which it is
    at_s   REAL NOT NULL       -- Unix time; informative
);
CREATE TABLE tallies (
    route TEXT PRIMARY KEY,
    seq   INTEGER NOT NULL,  -- how far the log was summed up when it changed last
    body  TEXT NOT NULL
);

CREATE VIEW requests AS SELECT seq, at_s, episode_id, route,
    json_extract(body, '$.request.kind') AS kind,
    json_extract(body, '$.request.mode') AS mode,
    json_extract(body, '$.request.model') AS model,
    json_extract(body, '$.request.stream') AS stream,
    json_extract(body, '$.request.n_samples') AS n_samples,
    json_extract(body, '$.request.audit') AS audit,
    json_extract(body, '$.request.propensity') AS propensity,
    json_extract(body, '$.request.policy_version') AS policy_version,
    json_extract(body, '$.request.certified') AS certified,
    json_extract(body, '$.request.question_key') AS question_key,
    json_extract(body, '$.request.ungoverned') AS ungoverned,
    json_extract(body, '$.request.received_at_s') AS received_at_s,
    coalesce(json_extract(body, '$.request.keep_rate'), 1.0) AS keep_rate,
    coalesce(json_extract(body, '$.request.kept_by'), '') AS kept_by,
    coalesce(json_extract(body, '$.request.endpoint'), '/v1/chat/completions') AS endpoint,
    json_extract(body, '$.request.query') AS query,
    coalesce(json_extract(body, '$.request.unit'), '') AS unit,
    coalesce(json_extract(body, '$.request.setup'), '') AS setup,
    coalesce(json_extract(body, '$.request.promise'), 'certified') AS promise,
    coalesce(json_extract(body, '$.request.sender'), '') AS sender,
    coalesce(json_extract(body, '$.request.arms'), '[]') AS arms,
    coalesce(json_extract(body, '$.request.delivery'), 1) AS delivery,
    coalesce(json_extract(body, '$.request.conversation'), '') AS conversation,
    coalesce(json_extract(body, '$.request.seeded'), 0) AS seeded,
    coalesce(json_extract(body, '$.request.tenant'), '') AS tenant,
    coalesce(json_extract(body, '$.request.form'), 'text') AS form
FROM events WHERE kind = 'request';

CREATE VIEW outcomes AS SELECT o.seq, o.at_s, o.episode_id, r.route AS route, o.response_id AS response_id,
    json_extract(o.body, '$.outcome.end_reason') AS end_reason,
    json_extract(o.body, '$.outcome.status') AS status,
    json_extract(o.body, '$.outcome.answer') AS answer,
    json_extract(o.body, '$.outcome.usage.prompt_tokens') AS prompt_tokens,
    json_extract(o.body, '$.outcome.usage.completion_tokens') AS completion_tokens,
    json_extract(o.body, '$.outcome.usage.reasoning_tokens') AS reasoning_tokens,
    json_extract(o.body, '$.outcome.usage.cached_tokens') AS cached_tokens,
    json_extract(o.body, '$.outcome.overhead.probe_tokens') AS probe_tokens,
    json_extract(o.body, '$.outcome.overhead.extra_prompt_tokens') AS extra_prompt_tokens,
    json_extract(o.body, '$.outcome.overhead.cached_prompt_tokens') AS cached_prompt_tokens,
    json_extract(o.body, '$.outcome.overhead.discarded_tokens') AS discarded_tokens,
    json_extract(o.body, '$.outcome.overhead.n_extra_calls') AS n_extra_calls,
    json_extract(o.body, '$.outcome.stopped') AS stopped,
    json_extract(o.body, '$.outcome.stop_reason') AS stop_reason,
    json_extract(o.body, '$.outcome.stop_step') AS stop_step,
    json_extract(o.body, '$.outcome.would_answer') AS would_answer,
    json_extract(o.body, '$.outcome.decision') AS decision,
    json_extract(o.body, '$.outcome.finish_method') AS finish_method,
    json_extract(o.body, '$.outcome.handover_ms') AS handover_ms,
    json_extract(o.body, '$.outcome.tokens_saved_estimate') AS tokens_saved_estimate,
    json_extract(o.body, '$.outcome.estimate_method') AS estimate_method,
    json_extract(o.body, '$.outcome.degraded') AS degraded,
    json_extract(o.body, '$.outcome.vote') AS vote,
    json_extract(o.body, '$.outcome.unclosed') AS unclosed,
    json_extract(o.body, '$.outcome.duration_s') AS duration_s,
    json_extract(o.body, '$.outcome.ttft_s') AS ttft_s,
    json_extract(o.body, '$.outcome.calls') AS calls,
    json_extract(o.body, '$.outcome.model') AS model,
    json_extract(o.body, '$.outcome.system_fingerprint') AS system_fingerprint,
    json_extract(o.body, '$.outcome.finish_step') AS finish_step,
    json_extract(o.body, '$.outcome.finish_answer') AS finish_answer,
    json_extract(o.body, '$.outcome.pair_arm') AS pair_arm,
    json_extract(o.body, '$.outcome.pair_propensity') AS pair_propensity,
    json_extract(o.body, '$.outcome.pair_answer') AS pair_answer,
    json_extract(o.body, '$.outcome.pair_tokens') AS pair_tokens
FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE o.kind = 'outcome';

CREATE VIEW costs AS SELECT o.seq, o.at_s, o.episode_id, r.route AS route,
    json_extract(o.body, '$.outcome.stopped') AS stopped,
    json_extract(o.body, '$.outcome.cost_usd') AS cost_usd,
    json_extract(o.body, '$.outcome.overhead_usd') AS overhead_usd,
    json_extract(o.body, '$.outcome.would_cost_usd') AS would_cost_usd,
    json_extract(o.body, '$.outcome.saved_usd_estimate') AS saved_usd_estimate
FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE o.kind = 'outcome';

CREATE VIEW steps AS SELECT o.seq, o.episode_id, r.route AS route, json_extract(s.value, '$.index') AS step,
    json_extract(s.value, '$.tokens') AS tokens,
    json_extract(s.value, '$.answer') AS answer,
    json_extract(s.value, '$.answer_source') AS answer_source,
    json_extract(s.value, '$.confidence') AS confidence,
    json_extract(s.value, '$.entropy') AS entropy,
    json_extract(s.value, '$.hedges') AS hedges,
    json_extract(s.value, '$.probe_tokens') AS probe_tokens,
    json_extract(s.value, '$.action') AS action,
    json_extract(s.value, '$.reason') AS reason,
    json_extract(s.value, '$.logprobs') AS logprobs,
    coalesce(json_extract(s.value, '$.ctx_tokens'), 0) AS ctx_tokens,
    json_extract(s.value, '$.logprob') AS logprob,
    json_extract(s.value, '$.stated_confidence') AS stated_confidence,
    json_extract(s.value, '$.reported_done') AS reported_done,
    json_extract(s.value, '$.caller_action') AS caller_action,
    json_extract(s.value, '$.draft_distance') AS draft_distance,
    json_extract(s.value, '$.hedge_rate') AS hedge_rate,
    json_extract(s.value, '$.loop_share') AS loop_share,
    json_extract(s.value, '$.margin') AS margin,
    json_extract(s.value, '$.mass') AS mass,
    json_extract(s.value, '$.closed_entropy') AS closed_entropy,
    json_extract(s.value, '$.end_margin') AS end_margin,
    json_extract(s.value, '$.known_words') AS known_words,
    json_extract(s.value, '$.pattern_code') AS pattern_code,
    coalesce(json_extract(s.value, '$.missing'), 0) AS missing,
    json_extract(s.value, '$.late_tokens') AS late_tokens
FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key,
    json_each(o.body, '$.outcome.steps') s
WHERE o.kind = 'outcome';

CREATE VIEW feedback AS SELECT
    j.seq, j.at_s, j.feedback_id, j.episode_id, r.route AS route, r.seq IS NOT NULL AS joined,
    j.response_id, j.correct, j.gold, j.answer, j.rating, j.thumbs, j.comment, j.source, j.reason, j.metrics,
    j.satisfaction, j.event, j.user, j.sender, j.propensity, j.door, j.request_reason
FROM (
    SELECT
        f.seq, f.at_s, json_extract(f.body, '$.feedback.feedback_id') AS feedback_id,
        -- Two answers with one response id: nobody can say which is meant, so neither.
        coalesce(f.episode_id, (
            SELECT CASE WHEN count(*) = 1 THEN max(o.key) END FROM events o
            WHERE o.kind = 'outcome' AND o.response_id = f.response_id
        )) AS episode_id,
        json_extract(f.body, '$.feedback.response_id') AS response_id,
        json_extract(f.body, '$.feedback.correct') AS correct,
        json_extract(f.body, '$.feedback.gold') AS gold,
        json_extract(f.body, '$.feedback.answer') AS answer,
        json_extract(f.body, '$.feedback.rating') AS rating,
        json_extract(f.body, '$.feedback.thumbs') AS thumbs,
        json_extract(f.body, '$.feedback.comment') AS comment,
        json_extract(f.body, '$.feedback.source') AS source,
        json_extract(f.body, '$.feedback.reason') AS reason,
        json_extract(f.body, '$.feedback.metrics') AS metrics,
        json_extract(f.body, '$.feedback.satisfaction') AS satisfaction,
        json_extract(f.body, '$.feedback.event') AS event,
        json_extract(f.body, '$.feedback.user') AS user,
        json_extract(f.body, '$.feedback.sender') AS sender,
        json_extract(f.body, '$.feedback.propensity') AS propensity,
        json_extract(f.body, '$.feedback.door') AS door,
        json_extract(f.body, '$.feedback.request_reason') AS request_reason
    FROM events f WHERE f.kind = 'feedback'
) j LEFT JOIN events r ON r.kind = 'request' AND r.key = j.episode_id;

-- name: schema_19()
CREATE TABLE IF NOT EXISTS fold_states (
    job   TEXT NOT NULL,
    route TEXT NOT NULL,
    seq   INTEGER NOT NULL,  -- place in the log up to which it was folded
    body  BLOB NOT NULL,
    PRIMARY KEY (job, route)
);

-- name: schema_20()
CREATE TABLE IF NOT EXISTS watches (
    job             TEXT NOT NULL,
    route           TEXT NOT NULL,     -- '': the job as a whole
    beat            INTEGER NOT NULL,  -- completed looks
    seq             INTEGER NOT NULL,  -- place in the log up to which the last one read
    n               INTEGER NOT NULL,  -- requests of the route that it had counted
    looked_at_s     REAL NOT NULL,     -- Unix time, by the worker's clock; 0: none was completed
    n_failures      INTEGER NOT NULL,  -- since the last completed one
    failing_since_s REAL,              -- Unix time of the first of them; null: it does not fail
    problem         TEXT NOT NULL,     -- of the latest
    PRIMARY KEY (job, route)
);

-- name: schema_22()
DROP VIEW outcomes;
CREATE VIEW outcomes AS SELECT o.seq, o.at_s, o.episode_id, r.route AS route, o.response_id AS response_id,
    json_extract(o.body, '$.outcome.end_reason') AS end_reason,
    json_extract(o.body, '$.outcome.status') AS status,
    json_extract(o.body, '$.outcome.answer') AS answer,
    json_extract(o.body, '$.outcome.usage.prompt_tokens') AS prompt_tokens,
    json_extract(o.body, '$.outcome.usage.completion_tokens') AS completion_tokens,
    json_extract(o.body, '$.outcome.usage.reasoning_tokens') AS reasoning_tokens,
    json_extract(o.body, '$.outcome.usage.cached_tokens') AS cached_tokens,
    json_extract(o.body, '$.outcome.overhead.probe_tokens') AS probe_tokens,
    json_extract(o.body, '$.outcome.overhead.extra_prompt_tokens') AS extra_prompt_tokens,
    json_extract(o.body, '$.outcome.overhead.cached_prompt_tokens') AS cached_prompt_tokens,
    json_extract(o.body, '$.outcome.overhead.discarded_tokens') AS discarded_tokens,
    json_extract(o.body, '$.outcome.overhead.n_extra_calls') AS n_extra_calls,
    json_extract(o.body, '$.outcome.stopped') AS stopped,
    json_extract(o.body, '$.outcome.stop_reason') AS stop_reason,
    json_extract(o.body, '$.outcome.stop_step') AS stop_step,
    json_extract(o.body, '$.outcome.would_answer') AS would_answer,
    json_extract(o.body, '$.outcome.decision') AS decision,
    json_extract(o.body, '$.outcome.finish_method') AS finish_method,
    json_extract(o.body, '$.outcome.handover_ms') AS handover_ms,
    json_extract(o.body, '$.outcome.tokens_saved_estimate') AS tokens_saved_estimate,
    json_extract(o.body, '$.outcome.estimate_method') AS estimate_method,
    json_extract(o.body, '$.outcome.degraded') AS degraded,
    json_extract(o.body, '$.outcome.vote') AS vote,
    json_extract(o.body, '$.outcome.unclosed') AS unclosed,
    json_extract(o.body, '$.outcome.duration_s') AS duration_s,
    json_extract(o.body, '$.outcome.ttft_s') AS ttft_s,
    json_extract(o.body, '$.outcome.calls') AS calls,
    json_extract(o.body, '$.outcome.model') AS model,
    json_extract(o.body, '$.outcome.system_fingerprint') AS system_fingerprint,
    json_extract(o.body, '$.outcome.finish_step') AS finish_step,
    json_extract(o.body, '$.outcome.finish_answer') AS finish_answer,
    json_extract(o.body, '$.outcome.pair_arm') AS pair_arm,
    json_extract(o.body, '$.outcome.pair_propensity') AS pair_propensity,
    json_extract(o.body, '$.outcome.pair_answer') AS pair_answer,
    json_extract(o.body, '$.outcome.pair_tokens') AS pair_tokens,
    coalesce(json_extract(o.body, '$.outcome.finished_unread'), 0) AS finished_unread,
    coalesce(json_extract(o.body, '$.outcome.has_less_effort'), 0) AS has_less_effort
FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE o.kind = 'outcome';

-- name: chain_tail()
SELECT place, link FROM chain ORDER BY place DESC LIMIT 1

-- name: chain_head(until)
SELECT (SELECT link FROM chain ORDER BY place LIMIT 1), place, coalesce(seq, 0), link
FROM chain WHERE coalesce(seq, 0) <= :until ORDER BY place DESC LIMIT 1

-- name: last_export(what)
SELECT seq FROM events WHERE kind = 'exported' AND json_extract(body, '$.export.what') = :what
ORDER BY seq DESC LIMIT 1

-- name: starts_of_route(route, until)
SELECT seq, kind, key, episode_id, route, at_s, body FROM events WHERE kind IN ('request', 'requests_counted')
    AND route = :route AND seq <= :until ORDER BY seq DESC

-- name: outcome_row(key, until)
SELECT seq, kind, key, episode_id, route, at_s, body FROM events WHERE kind = 'outcome' AND key = :key AND seq <= :until

-- name: links_from(place)
SELECT place, seq, kept, whole, answers, comments FROM chain WHERE place >= :place ORDER BY place

-- name: chain_with_events()
SELECT c.place, c.seq, c.form, c.kept, c.whole, c.answers, c.answers_salt, c.comments, c.comments_salt, c.link,
    c.note, e.kind, e.key, e.episode_id, e.route, e.at_s, e.body
FROM chain c LEFT JOIN events e ON e.seq = c.seq ORDER BY c.place

-- name: next_request(after, since_s)
-- The plus keeps SQLite from the index of kinds, which would need a sort.
SELECT seq, at_s FROM events WHERE seq > :after AND +kind = 'request' AND at_s >= :since_s ORDER BY seq LIMIT 1

-- name: last_request(after, before)
SELECT seq FROM events WHERE seq > :after AND seq < :before AND +kind = 'request' ORDER BY seq DESC LIMIT 1

-- name: n_open_requests(after, until)
SELECT count(*) FROM events r WHERE r.seq > :after AND r.seq <= :until AND +r.kind = 'request'
    AND NOT EXISTS (SELECT 1 FROM events o WHERE o.kind = 'outcome' AND o.key = r.key)

-- name: runs_of_range(after, until, limit)
SELECT r.seq, r.at_s, r.body, r.key, o.seq, o.body, o.response_id
FROM events r JOIN events o ON o.kind = 'outcome' AND o.key = r.key
WHERE r.seq > :after AND r.seq <= :until AND +r.kind = 'request' ORDER BY r.seq LIMIT :limit

-- name: removable_requests(until, limit)
SELECT seq, key FROM events WHERE seq <= :until AND +kind = 'request' ORDER BY seq LIMIT :limit

-- name: take_lease(job, owner, until_s)
INSERT INTO leases (job, owner, token, beat, held, until_s) VALUES (:job, :owner, 1, 0, 1, :until_s)
ON CONFLICT (job) DO UPDATE
SET owner = :owner, token = leases.token + 1, beat = 0, held = 1, until_s = :until_s RETURNING token

-- name: take_part(job, owner, token, until_s)
INSERT INTO leases (job, owner, token, beat, held, until_s) VALUES (:job, :owner, :token, 0, 1, :until_s)
ON CONFLICT (job) DO UPDATE
SET owner = excluded.owner, token = excluded.token, beat = 0, held = 1, until_s = excluded.until_s

-- name: leases_between(first, end)
SELECT job, owner, token, held, until_s FROM leases WHERE job >= :first AND job < :end

-- name: release_lease(job)
UPDATE leases SET held = 0 WHERE job = :job

-- name: write_fold_state(job, route, seq, body)
INSERT INTO fold_states (job, route, seq, body) VALUES (:job, :route, :seq, :body)
ON CONFLICT (job, route) DO UPDATE SET seq = excluded.seq, body = excluded.body

-- name: has_lease(job, owner, token)
SELECT 1 FROM leases WHERE job = :job AND owner = :owner AND token = :token AND held = 1

-- name: runs_named(kind, prefix, behind, limit)
SELECT key, at_s FROM events WHERE kind = :kind AND key >= :prefix AND key < :prefix || :behind
ORDER BY key DESC LIMIT :limit

-- name: runs_of_question(route, since, until, looked, question, limit)
SELECT key FROM (
    SELECT seq, key, body FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route
        AND seq > :since AND seq < :until ORDER BY seq DESC LIMIT :looked
) latest WHERE json_extract(body, '$.request.question_key') = :question ORDER BY seq DESC LIMIT :limit

-- name: word_rows_of_episode(episode)
SELECT seq FROM events WHERE (kind = 'request' OR kind = 'outcome' OR kind = 'label_wanted' OR
    kind = 'review_asked' OR kind = 'question_kept' OR kind = 'sources_kept') AND key = :episode
UNION
SELECT seq FROM events WHERE (kind = 'review_verdict' OR kind = 'review_returned') AND episode_id = :episode

-- name: label_rows_of_episode(episode)
-- Kinds are literals as in the indexes: with parameters SQLite would scan all labels.
SELECT seq FROM events WHERE kind = 'feedback' AND episode_id = :episode
UNION
SELECT seq FROM events WHERE kind = 'feedback' AND episode_id IS NULL
    AND response_id = (SELECT response_id FROM events WHERE kind = 'outcome' AND key = :episode)
ORDER BY seq

-- name: episodes_of_unit(unit)
SELECT key FROM events WHERE kind = 'request'
AND :unit IN (json_extract(body, '$.request.unit'), json_extract(body, '$.request.conversation'))

-- name: conversation_senders()
SELECT DISTINCT coalesce(json_extract(body, '$.request.sender'), '') FROM events
WHERE kind = 'request' AND coalesce(json_extract(body, '$.request.conversation'), '') <> ''

-- name: rows_between(after, until, limit)
SELECT seq, at_s, kind, key FROM events WHERE seq > :after AND seq <= :until ORDER BY seq LIMIT :limit

-- name: erased_until(what)
SELECT max(CAST(json_extract(body, '$.erasure.until_seq') AS BIGINT)) FROM events
WHERE kind = 'erased' AND json_extract(body, '$.erasure.what') = :what

-- name: n_erasures(id)
-- Keys begin with the id; ";" follows ":".
SELECT count(*) FROM events WHERE kind = 'erased' AND key > :id || ':' AND key < :id || ';'

-- name: exports_since(seq)
SELECT at_s, json_extract(body, '$.export.where') FROM events WHERE kind = 'exported' AND seq > :seq ORDER BY seq

-- name: episodes(after, since, route, limit)
SELECT o.seq, r.seq, o.body, r.body, o.key, o.response_id
FROM events o JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE o.kind = 'outcome' AND o.seq > :after AND (o.seq > :since OR r.seq > :since)
    AND (CAST(:route AS TEXT) IS NULL OR r.route = :route)
ORDER BY o.seq LIMIT :limit

-- name: recent_episodes(looked, n)
-- From the end of the table: through the index of kinds, SQLite would first sort all outcomes.
SELECT o.seq, r.seq, o.body, r.body FROM (
    SELECT seq, key, body FROM events NOT INDEXED
    WHERE kind = 'outcome' AND seq > (SELECT max(seq) FROM events) - :looked ORDER BY seq DESC LIMIT :n
) o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key ORDER BY o.seq

-- name: labels_of_episode(episode, until, response, shared)
-- The same rule as the view `feedback`, inverted so that the indexes find a few labels at once.
SELECT seq, at_s, body FROM events WHERE kind = 'feedback' AND episode_id = :episode AND seq <= :until
UNION ALL
SELECT seq, at_s, body FROM events
WHERE kind = 'feedback' AND episode_id IS NULL AND seq <= :until
    AND response_id = :response
    AND (:shared OR (SELECT count(*) FROM events o WHERE o.kind = 'outcome' AND o.response_id = :response) = 1)
ORDER BY seq

-- name: labels_of_episodes(names, until)
-- The same for many runs at once, without response ids that two answers have.
SELECT episode_id, seq, at_s, body FROM events INDEXED BY feedback_by_episode
WHERE kind = 'feedback' AND episode_id IN (SELECT value FROM json_each(:names, '$.of')) AND seq <= :until

-- name: labels_of_responses(until, names)
SELECT response_id, seq, at_s, body FROM events
WHERE kind = 'feedback' AND episode_id IS NULL AND seq <= :until
    AND response_id IN (SELECT value FROM json_each(:names, '$.of'))

-- name: episodes_of_responses(names)
SELECT named.value,
    (SELECT key FROM events WHERE kind = 'outcome' AND response_id = named.value LIMIT 1) AS first_key,
    (SELECT key FROM events WHERE kind = 'outcome' AND response_id = named.value LIMIT 1 OFFSET 1) AS second_key
FROM json_each(:names, '$.of') named

-- name: events_by_keys(kind, names)
SELECT key, seq, at_s, body FROM events
WHERE kind = :kind AND key IN (SELECT value FROM json_each(:names, '$.of'))

-- name: n_requests_up_to(route, most)
-- Bounded, so that start-up does not slow down as the log grows.
SELECT count(*) FROM (
    SELECT 1 FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route LIMIT :most) latest

-- name: n_unlogged_up_to(route, most)
SELECT coalesce(sum(n), 0) FROM (
    SELECT CAST(json_extract(body, '$.counted.n_requests') AS BIGINT) AS n FROM events INDEXED BY counted
    WHERE kind = 'requests_counted' AND route = :route ORDER BY seq DESC LIMIT :most) latest

-- name: extracted_answers(route, since, looked, limit)
-- Runs that a policy merely did not stop are the hard ones: count only those that it could not stop.
SELECT json_extract(o.body, '$.outcome.answer') IS NOT NULL
FROM events r INDEXED BY requests_by_route CROSS JOIN events o ON o.kind = 'outcome' AND o.key = r.key
WHERE r.kind = 'request' AND r.route = :route AND o.seq > :since AND r.seq > coalesce((
        SELECT seq FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route
        ORDER BY seq DESC LIMIT 1 OFFSET :looked
    ), 0)
    AND json_extract(r.body, '$.request.ungoverned') IS NULL
    AND (json_extract(r.body, '$.request.mode') <> 'enforce'
        OR CAST(json_extract(r.body, '$.request.audit') AS BOOLEAN))
    AND NOT CAST(json_extract(o.body, '$.outcome.stopped') AS BOOLEAN)
    AND json_extract(o.body, '$.outcome.end_reason') IN ('done', 'truncated')
ORDER BY r.seq DESC LIMIT :limit

-- name: drawn_episodes(after, until, route)
-- A cross join reads the new rows and then their requests; SQLite would begin with all requests of the route.
SELECT o.seq, r.seq, o.body, r.body, o.key, o.response_id
FROM events o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE +o.kind = 'outcome' AND o.seq > :after AND o.seq <= :until AND r.route = :route
    AND json_extract(r.body, '$.request.kept_by') = 'lot' ORDER BY o.seq

-- name: n_counted(route, after)
SELECT sum(CAST(json_extract(body, '$.counted.n_governed') AS BIGINT)) FROM events
WHERE kind = 'requests_counted' AND route = :route AND seq > :after

-- name: n_governed(after, route)
SELECT count(*), count(*) FILTER (WHERE
    CAST(json_extract(body, '$.request.audit') AS BOOLEAN) OR json_extract(body, '$.request.mode') = 'observe'
) FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND seq > :after AND route = :route
    AND json_extract(body, '$.request.ungoverned') IS NULL

-- name: newest_request(route)
-- With statistics of a log of few routes, SQLite would rather go through all of it.
SELECT seq, body FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route
ORDER BY seq DESC LIMIT 1

-- name: nth_latest_request(route, n)
SELECT seq FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route
ORDER BY seq DESC LIMIT 1 OFFSET :n

-- name: place_before_first_request(route)
SELECT min(seq) - 1 FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route

-- name: news(after, owner)
SELECT kind, route, CASE WHEN kind = 'request' THEN body END FROM events
WHERE seq > :after AND kind NOT IN ('outcome', 'feedback') AND NOT (kind = 'request' AND owner = :owner)

-- name: unfinished_requests(owner, settled)
SELECT r.key FROM events r INDEXED BY requests_by_owner
WHERE r.kind = 'request' AND r.owner = :owner AND r.seq > :settled
AND NOT EXISTS (SELECT 1 FROM events o WHERE o.kind = 'outcome' AND o.key = r.key)

-- name: is_joined(seq)
SELECT f.joined OR json_extract(e.body, '$.about') IS NOT NULL
FROM feedback f JOIN events e ON e.seq = f.seq WHERE f.seq = :seq

-- name: write_completed_look(job, route, seq, n, looked_at_s)
INSERT INTO watches (job, route, beat, seq, n, looked_at_s, n_failures, failing_since_s, problem) VALUES (:job, :route,
    1, :seq, :n, :looked_at_s, 0, NULL, '')
ON CONFLICT (job, route) DO UPDATE
SET beat = watches.beat + 1, seq = excluded.seq, n = excluded.n, looked_at_s = excluded.looked_at_s,
    n_failures = 0, failing_since_s = NULL, problem = ''

-- name: write_failed_look(job, route, failing_since_s, problem)
INSERT INTO watches (job, route, beat, seq, n, looked_at_s, n_failures, failing_since_s, problem) VALUES (:job, :route,
    0, 0, 0, 0, 1, :failing_since_s, :problem)
ON CONFLICT (job, route) DO UPDATE
SET n_failures = watches.n_failures + 1, problem = excluded.problem,
    failing_since_s = coalesce(watches.failing_since_s, excluded.failing_since_s)

-- name: rows_to_fold(after, limit)
-- The plus keeps SQLite from the index of kinds, which would need a sort.
SELECT seq, at_s, kind, key, episode_id, route,
    CASE WHEN kind IN ('feedback', 'requests_counted') THEN body END
FROM events WHERE seq > :after AND +kind IN ('request', 'outcome', 'feedback', 'requests_counted')
ORDER BY seq LIMIT :limit

-- name: n_governed_since(route, after, most)
SELECT count(*) FROM (
    SELECT 1 FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route = :route AND seq > :after
        AND json_extract(body, '$.request.ungoverned') IS NULL LIMIT :most) latest

-- name: draws_of_experiment(since, until, name, run)
SELECT r.seq, a.value, json_extract(r.body, '$.request.query')
FROM events r, json_each(r.body, '$.request.arms') a
WHERE r.kind = 'request' AND r.seq > :since AND (CAST(:until AS BIGINT) IS NULL OR r.seq <= :until)
    AND json_extract(a.value, '$.experiment') = :name AND CAST(json_extract(a.value, '$.run') AS BIGINT) = :run
ORDER BY r.seq

-- name: audit_entries(after, route, kind, since, limit)
SELECT c.place, c.link, e.seq, e.at_s, e.kind, e.key, e.episode_id, e.route, e.body FROM chain c JOIN events e
    ON e.seq = c.seq WHERE c.place > :after AND (CAST(:route AS TEXT) IS NULL OR e.route = :route) AND
    (CAST(:kind AS TEXT) IS NULL OR e.kind = :kind)
    AND (CAST(:since AS DOUBLE PRECISION) IS NULL OR e.at_s >= :since)
ORDER BY c.place LIMIT :limit

-- name: place_of_latest_entry(route, kind, n)
SELECT c.place FROM chain c JOIN events e ON e.seq = c.seq WHERE (CAST(:route AS TEXT) IS NULL OR
    e.route = :route) AND (CAST(:kind AS TEXT) IS NULL OR e.kind = :kind) ORDER BY c.place DESC LIMIT 1 OFFSET
    :n

-- name: decisions_since(after)
SELECT seq, at_s, kind, body FROM events INDEXED BY decisions WHERE seq > :after AND (kind = 'agent_planned' OR
    kind = 'alarm_raised' OR kind = 'enforcement_paused' OR kind = 'enforcement_resumed' OR kind = 'epoch_began'
    OR kind = 'policy_published') ORDER BY seq

-- name: reviews_since(after)
SELECT seq, at_s, kind, body FROM events INDEXED BY reviews WHERE seq > :after AND (kind = 'review_asked' OR
    kind = 'review_drawn' OR kind = 'review_leased' OR kind = 'review_returned' OR kind = 'review_verdict')
    ORDER BY seq

-- name: holds_since(after)
SELECT seq, at_s, kind, body FROM events INDEXED BY holds WHERE seq > :after AND (kind = 'enforcement_paused' OR
    kind = 'enforcement_resumed' OR kind = 'incident_decided' OR kind = 'incident_opened' OR
    kind = 'override_ended' OR kind = 'override_set') ORDER BY seq

-- name: decisions_of_route(route, limit)
SELECT seq, at_s, kind, body FROM events INDEXED BY decisions WHERE (kind = 'agent_planned' OR
    kind = 'alarm_raised' OR kind = 'enforcement_paused' OR kind = 'enforcement_resumed' OR kind = 'epoch_began'
    OR kind = 'policy_published') AND route = :route
ORDER BY seq DESC LIMIT :limit

-- name: publications_of_route(route)
SELECT seq, at_s, kind, body FROM events INDEXED BY decisions
WHERE (kind = 'agent_planned' OR kind = 'alarm_raised' OR kind = 'enforcement_paused' OR
    kind = 'enforcement_resumed' OR kind = 'epoch_began' OR kind = 'policy_published')
    AND kind = 'policy_published' AND route = :route ORDER BY seq

-- name: open_label_requests(route, limit)
SELECT seq, at_s, kind, body FROM events INDEXED BY jobs WHERE (kind = 'job_ran' OR kind = 'label_wanted')
    AND kind = 'label_wanted' AND route = :route
    AND (SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = events.key LIMIT 1) IS NULL
    AND (SELECT 1 FROM events a WHERE a.kind = 'review_asked' AND a.key = events.key LIMIT 1) IS NULL
ORDER BY seq DESC LIMIT :limit

-- name: newest_of_kind(kind, limit)
SELECT seq, at_s, kind, body FROM events WHERE kind = :kind ORDER BY seq DESC LIMIT :limit

-- name: newest_by_prefix(kind, prefix, route, limit)
-- Keys that begin with a name and sort by the rest: the unique index finds the newest at once. ";" follows ":".
SELECT seq, at_s, kind, body FROM events WHERE kind = :kind AND key > :prefix || ':' AND key < :prefix || ';'
    AND (CAST(:route AS TEXT) IS NULL OR route = :route)
ORDER BY key DESC LIMIT :limit

-- name: newest_of_rare_kind(kind, after, until, limit)
-- Through the index of kinds: their rows are few, and no other rows are scanned.
SELECT seq, at_s, kind, body FROM events INDEXED BY events_once WHERE kind = :kind AND seq > :after AND seq <= :until
ORDER BY seq DESC LIMIT :limit

-- name: alert_rows(after, limit)
SELECT seq, at_s, kind, body FROM events INDEXED BY events_once WHERE (kind = 'route_monitored' OR
    kind = 'alert_raised' OR kind = 'alarm_raised' OR kind = 'enforcement_paused' OR kind = 'incident_opened' OR
    kind = 'kill_switched' OR kind = 'rollout_moved' OR kind = 'rollout_undone' OR kind = 'fail_open_high' OR
    kind = 'version_refused' OR kind = 'log_missed' OR kind = 'arm_worse' OR kind = 'agent_planned' OR
    kind = 'rule_checked' OR kind = 'watch_changed') AND seq > :after
ORDER BY seq LIMIT :limit

-- name: has_requests()
SELECT 1 FROM events INDEXED BY events_once WHERE kind IN ('request', 'requests_counted') LIMIT 1

-- name: first_hour()
SELECT hour FROM rollups INDEXED BY rollups_by_hour WHERE grain = 0 ORDER BY hour LIMIT 1

-- name: first_route()
SELECT route FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route >= '' ORDER BY route LIMIT 1

-- name: next_route(after)
SELECT route FROM events INDEXED BY requests_by_route WHERE kind = 'request' AND route > :after ORDER BY route LIMIT 1

-- name: runs_before(before, since, route, tenants, text, limit)
-- Backwards through the log instead of sorting all of it; labels of these runs: for EXISTS, PostgreSQL may read all
-- labels first.
SELECT o.seq, o.at_s, o.body, r.body,
    (SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = o.key LIMIT 1) IS NOT NULL
FROM events o CROSS JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE +o.kind = 'outcome' AND o.seq < :before AND o.seq >= :since
    AND (CAST(:route AS TEXT) IS NULL OR r.route = :route)
    AND (CAST(:tenants AS TEXT) IS NULL OR coalesce(json_extract(r.body, '$.request.tenant'), '') IN (
        SELECT value FROM json_each(:tenants, '$.of')))
    AND (CAST(:text AS TEXT) IS NULL OR lower(r.body) LIKE :text ESCAPE '!' OR lower(o.body) LIKE :text ESCAPE '!')
ORDER BY o.seq DESC LIMIT :limit

-- name: rare_entries_before(before, limit, chained)
-- The index of kinds is sorted for rare ones.
SELECT c.place, c.link, e.seq, e.at_s, e.kind, e.key, e.episode_id, e.route, e.body
FROM (SELECT seq FROM events INDEXED BY events_once WHERE kind IN ({kinds}) AND seq < :before
    ORDER BY seq DESC LIMIT :limit) latest
JOIN events e ON e.seq = latest.seq LEFT JOIN chain c ON c.seq = latest.seq
WHERE NOT :chained OR c.seq IS NOT NULL ORDER BY latest.seq DESC

-- name: entries_before(before, limit, chained)
-- The latest rows of a frequent kind are soon found without the index of kinds.
SELECT c.place, c.link, e.seq, e.at_s, e.kind, e.key, e.episode_id, e.route, e.body
FROM (SELECT seq FROM events NOT INDEXED WHERE kind IN ({kinds}) AND seq < :before
    ORDER BY seq DESC LIMIT :limit) latest
JOIN events e ON e.seq = latest.seq LEFT JOIN chain c ON c.seq = latest.seq
WHERE NOT :chained OR c.seq IS NOT NULL ORDER BY latest.seq DESC

-- name: log_rows(after, limit)
SELECT seq, at_s, kind, key, episode_id, route, body FROM events WHERE seq > :after
ORDER BY seq LIMIT :limit

-- name: copy_owner(id, lock, pid, started_s, settled)
INSERT INTO owners (id, lock, pid, started_s, settled) VALUES (:id, :lock, :pid, :started_s, :settled)

-- name: insert_event(kind, key, episode_id, route, at_s, owner, body, response_id)
-- From here on: queries of SQLite alone.
-- Marks in order take a quarter less than names, for each row.
INSERT INTO events (kind, key, episode_id, route, at_s, owner, body, response_id)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING

-- name: find_event(kind, key)
SELECT seq, owner FROM events WHERE kind = :kind AND key = :key
