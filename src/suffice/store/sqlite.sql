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

-- name: schema_21()
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
    coalesce(json_extract(o.body, '$.outcome.finished_unread'), 0) AS finished_unread
FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
WHERE o.kind = 'outcome';
