"""The database's shape: numbered migrations, and the views that people read with any SQL tool.

The table `events` is the only truth. `requests`, `outcomes`, `costs`, `steps` and `feedback` are views over
it, so `sqlite3 suffice.db 'select count(*) from outcomes'` just works. `owners` and `leases` are bookkeeping:
they say which processes may still be running and which of them does which job, and hold no history. `rollups`,
`rolled` and `tallies` are a cache for pages and reports. `artefacts`
holds what events name by an address of its content, and `chain` what the audit log is verified by.
"""

from __future__ import annotations

import sqlite3
import time

from suffice.errors import StoreError

APPLICATION_ID = 0x53554646  # "SUFF": tells our files from anybody else's
_LOOKS_S = 0.01  # between two tries for a new file that others open too
QUICK_CHECK_BYTES = 64 * 2**20  # larger files are not read through at start-up

# A released migration is never edited: a change of shape is one more entry at the end.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE events (
        seq        INTEGER PRIMARY KEY AUTOINCREMENT,  -- the only order
        kind       TEXT NOT NULL,
        key        TEXT NOT NULL,                      -- episode id, or feedback id
        episode_id TEXT,
        route      TEXT,
        at_s       REAL NOT NULL,                      -- Unix time; informative
        owner      INTEGER NOT NULL,                   -- the process that wrote it
        body       TEXT NOT NULL                       -- the event as JSON
    );
    CREATE UNIQUE INDEX events_once ON events (kind, key);
    CREATE INDEX outcomes_by_response ON events (json_extract(body, '$.outcome.response_id'))
        WHERE kind = 'outcome';
    CREATE INDEX feedback_by_episode ON events (episode_id) WHERE kind = 'feedback';
    CREATE INDEX feedback_by_response ON events (json_extract(body, '$.feedback.response_id'))
        WHERE kind = 'feedback' AND episode_id IS NULL;
    CREATE INDEX requests_by_owner ON events (owner) WHERE kind = 'request';

    CREATE TABLE owners (
        id        INTEGER PRIMARY KEY AUTOINCREMENT,
        lock      TEXT NOT NULL UNIQUE,                -- part of its lock file's name
        pid       INTEGER NOT NULL,                    -- for people; never used to decide
        started_s REAL NOT NULL
    );

    CREATE VIEW requests AS SELECT
        seq, at_s, episode_id, route,
        json_extract(body, '$.request.kind')           AS kind,
        json_extract(body, '$.request.mode')           AS mode,
        json_extract(body, '$.request.model')          AS model,
        json_extract(body, '$.request.stream')         AS stream,
        json_extract(body, '$.request.n_samples')      AS n_samples,
        json_extract(body, '$.request.audit')          AS audit,
        json_extract(body, '$.request.propensity')     AS propensity,
        json_extract(body, '$.request.policy_version') AS policy_version,
        json_extract(body, '$.request.certified')      AS certified,
        json_extract(body, '$.request.question_key')   AS question_key,
        json_extract(body, '$.request.ungoverned')     AS ungoverned,
        json_extract(body, '$.request.received_at_s')  AS received_at_s
    FROM events WHERE kind = 'request';

    CREATE VIEW outcomes AS SELECT
        o.seq, o.at_s, o.episode_id, r.route AS route,
        json_extract(o.body, '$.outcome.end_reason')                    AS end_reason,
        json_extract(o.body, '$.outcome.status')                        AS status,
        json_extract(o.body, '$.outcome.answer')                        AS answer,
        json_extract(o.body, '$.outcome.response_id')                   AS response_id,
        json_extract(o.body, '$.outcome.usage.prompt_tokens')           AS prompt_tokens,
        json_extract(o.body, '$.outcome.usage.completion_tokens')       AS completion_tokens,
        json_extract(o.body, '$.outcome.usage.reasoning_tokens')        AS reasoning_tokens,
        json_extract(o.body, '$.outcome.usage.cached_tokens')           AS cached_tokens,
        json_extract(o.body, '$.outcome.overhead.probe_tokens')         AS probe_tokens,
        json_extract(o.body, '$.outcome.overhead.extra_prompt_tokens')  AS extra_prompt_tokens,
        json_extract(o.body, '$.outcome.overhead.cached_prompt_tokens') AS cached_prompt_tokens,
        json_extract(o.body, '$.outcome.overhead.discarded_tokens')     AS discarded_tokens,
        json_extract(o.body, '$.outcome.overhead.n_extra_calls')        AS n_extra_calls,
        json_extract(o.body, '$.outcome.stopped')                       AS stopped,
        json_extract(o.body, '$.outcome.stop_reason')                   AS stop_reason,
        json_extract(o.body, '$.outcome.stop_step')                     AS stop_step,
        json_extract(o.body, '$.outcome.would_answer')                  AS would_answer,
        json_extract(o.body, '$.outcome.decision')                      AS decision,
        json_extract(o.body, '$.outcome.finish_method')                 AS finish_method,
        json_extract(o.body, '$.outcome.handover_ms')                   AS handover_ms,
        json_extract(o.body, '$.outcome.tokens_saved_estimate')         AS tokens_saved_estimate,
        json_extract(o.body, '$.outcome.estimate_method')               AS estimate_method,
        json_extract(o.body, '$.outcome.degraded')                      AS degraded,
        json_extract(o.body, '$.outcome.vote')                          AS vote,
        json_extract(o.body, '$.outcome.unclosed')                      AS unclosed,
        json_extract(o.body, '$.outcome.duration_s')                    AS duration_s,
        json_extract(o.body, '$.outcome.ttft_s')                        AS ttft_s
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE o.kind = 'outcome';

    CREATE VIEW steps AS SELECT
        o.seq, o.episode_id, r.route AS route,
        json_extract(s.value, '$.index')         AS step,
        json_extract(s.value, '$.tokens')        AS tokens,
        json_extract(s.value, '$.answer')        AS answer,
        json_extract(s.value, '$.answer_source') AS answer_source,
        json_extract(s.value, '$.confidence')    AS confidence,
        json_extract(s.value, '$.entropy')       AS entropy,
        json_extract(s.value, '$.hedges')        AS hedges,
        json_extract(s.value, '$.probe_tokens')  AS probe_tokens,
        json_extract(s.value, '$.action')        AS action,
        json_extract(s.value, '$.reason')        AS reason
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key,
        json_each(o.body, '$.outcome.steps') s
    WHERE o.kind = 'outcome';

    CREATE VIEW feedback AS SELECT
        j.seq, j.at_s, j.feedback_id, j.episode_id, r.route AS route,
        r.seq IS NOT NULL AS joined,
        j.response_id, j.correct, j.gold, j.answer, j.rating, j.thumbs, j.comment, j.source, j.reason
    FROM (
        SELECT
            f.seq, f.at_s, f.key AS feedback_id,
            -- Two answers with one response id: nobody can say which is meant, so neither.
            coalesce(f.episode_id, (
                SELECT CASE WHEN count(*) = 1 THEN max(o.key) END FROM events o
                WHERE o.kind = 'outcome' AND json_extract(o.body, '$.outcome.response_id')
                    = json_extract(f.body, '$.feedback.response_id')
            )) AS episode_id,
            json_extract(f.body, '$.feedback.response_id') AS response_id,
            json_extract(f.body, '$.feedback.correct')     AS correct,
            json_extract(f.body, '$.feedback.gold')        AS gold,
            json_extract(f.body, '$.feedback.answer')      AS answer,
            json_extract(f.body, '$.feedback.rating')      AS rating,
            json_extract(f.body, '$.feedback.thumbs')      AS thumbs,
            json_extract(f.body, '$.feedback.comment')     AS comment,
            json_extract(f.body, '$.feedback.source')      AS source,
            json_extract(f.body, '$.feedback.reason')      AS reason
        FROM events f WHERE f.kind = 'feedback'
    ) j LEFT JOIN events r ON r.kind = 'request' AND r.key = j.episode_id;
    """,
    """
    CREATE VIEW costs AS SELECT
        o.seq, o.at_s, o.episode_id, r.route AS route,
        json_extract(o.body, '$.outcome.stopped')            AS stopped,
        json_extract(o.body, '$.outcome.cost_usd')           AS cost_usd,
        json_extract(o.body, '$.outcome.overhead_usd')       AS overhead_usd,
        json_extract(o.body, '$.outcome.would_cost_usd')     AS would_cost_usd,
        json_extract(o.body, '$.outcome.saved_usd_estimate') AS saved_usd_estimate
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE o.kind = 'outcome';
    """,
    """
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

    CREATE INDEX decisions ON events (seq) WHERE kind IN
        ('alarm_raised', 'enforcement_paused', 'enforcement_resumed', 'epoch_began', 'policy_published');
    CREATE INDEX jobs ON events (seq) WHERE kind IN ('job_ran', 'label_wanted');
    """,
    """
    -- A cache: sums by route, class, version and hour (store/routes/rollups.py). It may be emptied at any time.
    CREATE TABLE rollups (
        grain             INTEGER NOT NULL,   -- 0: by the hour; by the day: 1 routes, 2 classes, 3 versions
        route             TEXT NOT NULL,
        query_class       TEXT NOT NULL,
        version           TEXT NOT NULL,
        hour              INTEGER NOT NULL,   -- since 1970, UTC
        n_requests        INTEGER NOT NULL,
        n_governed        INTEGER NOT NULL,
        n_failed          INTEGER NOT NULL,
        n_degraded        INTEGER NOT NULL,
        n_stopped         INTEGER NOT NULL,
        n_full            INTEGER NOT NULL,
        n_audits          INTEGER NOT NULL,
        n_disagreeing     INTEGER NOT NULL,
        n_pending         INTEGER NOT NULL,
        n_lost            INTEGER NOT NULL,
        n_gained          INTEGER NOT NULL,
        n_full_marked     INTEGER NOT NULL,
        n_full_right      INTEGER NOT NULL,
        n_stopped_marked  INTEGER NOT NULL,
        n_stopped_right   INTEGER NOT NULL,
        n_live_marked     INTEGER NOT NULL,
        n_live_right      INTEGER NOT NULL,
        n_full_counted    INTEGER NOT NULL,
        full_tokens       INTEGER NOT NULL,
        n_live_counted    INTEGER NOT NULL,
        live_tokens       INTEGER NOT NULL,
        whole_tokens      INTEGER NOT NULL,
        would_tokens      INTEGER NOT NULL,
        saved_tokens      INTEGER NOT NULL,
        prompt_tokens     INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        overhead_tokens   INTEGER NOT NULL,
        n_priced          INTEGER NOT NULL,
        cost_usd          REAL NOT NULL,
        overhead_usd      REAL NOT NULL,
        saved_usd         REAL NOT NULL,
        would_save_usd    REAL NOT NULL,
        n_full_rated      INTEGER NOT NULL,
        full_rated        REAL NOT NULL,
        n_stopped_rated   INTEGER NOT NULL,
        stopped_rated     REAL NOT NULL,
        duration_s        REAL NOT NULL,
        PRIMARY KEY (grain, route, query_class, version, hour)
    ) WITHOUT ROWID;
    CREATE INDEX rollups_by_hour ON rollups (hour) WHERE grain = 0;
    CREATE TABLE rolled (
        id     INTEGER PRIMARY KEY CHECK (id = 1),
        format INTEGER NOT NULL,   -- of what is summed
        seq    INTEGER NOT NULL,   -- place in the log up to which it is
        at_s   REAL NOT NULL       -- Unix time; informative
    );
    """,
    """
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
    """,
    """
    CREATE INDEX reviews ON events (seq) WHERE kind IN
        ('review_asked', 'review_drawn', 'review_leased', 'review_returned', 'review_verdict');
    CREATE INDEX holds ON events (seq) WHERE kind IN
        ('enforcement_paused', 'enforcement_resumed', 'incident_decided', 'incident_opened', 'override_ended',
         'override_set');
    """,
    """
    -- As it was, and what feedback has been able to say since; a test holds it against the record.
    DROP VIEW feedback;
    CREATE VIEW feedback AS SELECT
        j.seq, j.at_s, j.feedback_id, j.episode_id, r.route AS route,
        r.seq IS NOT NULL AS joined,
        j.response_id, j.correct, j.gold, j.answer, j.rating, j.thumbs, j.comment, j.source, j.reason,
        j.metrics, j.satisfaction, j.event, j.user, j.sender, j.propensity, j.door, j.asked_for
    FROM (
        SELECT
            f.seq, f.at_s, f.key AS feedback_id,
            -- Two answers with one response id: nobody can say which is meant, so neither.
            coalesce(f.episode_id, (
                SELECT CASE WHEN count(*) = 1 THEN max(o.key) END FROM events o
                WHERE o.kind = 'outcome' AND json_extract(o.body, '$.outcome.response_id')
                    = json_extract(f.body, '$.feedback.response_id')
            )) AS episode_id,
            json_extract(f.body, '$.feedback.response_id')  AS response_id,
            json_extract(f.body, '$.feedback.correct')      AS correct,
            json_extract(f.body, '$.feedback.gold')         AS gold,
            json_extract(f.body, '$.feedback.answer')       AS answer,
            json_extract(f.body, '$.feedback.rating')       AS rating,
            json_extract(f.body, '$.feedback.thumbs')       AS thumbs,
            json_extract(f.body, '$.feedback.comment')      AS comment,
            json_extract(f.body, '$.feedback.source')       AS source,
            json_extract(f.body, '$.feedback.reason')       AS reason,
            json_extract(f.body, '$.feedback.metrics')      AS metrics,       -- JSON: [[name, value], …]
            json_extract(f.body, '$.feedback.satisfaction') AS satisfaction,
            json_extract(f.body, '$.feedback.event')        AS event,
            json_extract(f.body, '$.feedback.user')         AS user,
            json_extract(f.body, '$.feedback.sender')       AS sender,
            json_extract(f.body, '$.feedback.propensity')   AS propensity,
            json_extract(f.body, '$.feedback.door')         AS door,
            json_extract(f.body, '$.feedback.asked_for')    AS asked_for
        FROM events f WHERE f.kind = 'feedback'
    ) j LEFT JOIN events r ON r.kind = 'request' AND r.key = j.episode_id;
    """,
    """
    -- How many requests a route has had, and its latest, without a look at the others.
    CREATE INDEX requests_by_route ON events (route) WHERE kind = 'request';
    """,
    """
    CREATE INDEX counted ON events (route, seq) WHERE kind = 'requests_counted';
    -- Sums of squared weights, less those of the weights: 0 where every run has its rows.
    ALTER TABLE rollups ADD COLUMN stopped_marked_excess REAL NOT NULL DEFAULT 0;
    ALTER TABLE rollups ADD COLUMN live_marked_excess REAL NOT NULL DEFAULT 0;
    -- As it was, and by which lottery its rows are kept.
    DROP VIEW requests;
    CREATE VIEW requests AS SELECT
        seq, at_s, episode_id, route,
        json_extract(body, '$.request.kind')           AS kind,
        json_extract(body, '$.request.mode')           AS mode,
        json_extract(body, '$.request.model')          AS model,
        json_extract(body, '$.request.stream')         AS stream,
        json_extract(body, '$.request.n_samples')      AS n_samples,
        json_extract(body, '$.request.audit')          AS audit,
        json_extract(body, '$.request.propensity')     AS propensity,
        json_extract(body, '$.request.policy_version') AS policy_version,
        json_extract(body, '$.request.certified')      AS certified,
        json_extract(body, '$.request.question_key')   AS question_key,
        json_extract(body, '$.request.ungoverned')     AS ungoverned,
        json_extract(body, '$.request.received_at_s')  AS received_at_s,
        coalesce(json_extract(body, '$.request.keep_rate'), 1.0) AS keep_rate,
        coalesce(json_extract(body, '$.request.kept_by'), '')    AS kept_by
    FROM events WHERE kind = 'request';
    """,
    """
    -- Place in the log up to which no request of this process is without its outcome.
    ALTER TABLE owners ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- As they were, and what the records have been able to say since; a test holds them against the records.
    DROP VIEW requests;
    CREATE VIEW requests AS SELECT
        seq, at_s, episode_id, route,
        json_extract(body, '$.request.kind')           AS kind,
        json_extract(body, '$.request.mode')           AS mode,
        json_extract(body, '$.request.model')          AS model,
        json_extract(body, '$.request.stream')         AS stream,
        json_extract(body, '$.request.n_samples')      AS n_samples,
        json_extract(body, '$.request.audit')          AS audit,
        json_extract(body, '$.request.propensity')     AS propensity,
        json_extract(body, '$.request.policy_version') AS policy_version,
        json_extract(body, '$.request.certified')      AS certified,
        json_extract(body, '$.request.question_key')   AS question_key,
        json_extract(body, '$.request.ungoverned')     AS ungoverned,
        json_extract(body, '$.request.received_at_s')  AS received_at_s,
        coalesce(json_extract(body, '$.request.keep_rate'), 1.0) AS keep_rate,
        coalesce(json_extract(body, '$.request.kept_by'), '')    AS kept_by,
        coalesce(json_extract(body, '$.request.endpoint'), '/v1/chat/completions') AS endpoint,
        json_extract(body, '$.request.query')          AS query,        -- JSON
        coalesce(json_extract(body, '$.request.unit'), '')       AS unit,
        coalesce(json_extract(body, '$.request.setup'), '')      AS setup,
        coalesce(json_extract(body, '$.request.promise'), 'certified') AS promise,
        coalesce(json_extract(body, '$.request.sender'), '')     AS sender,
        coalesce(json_extract(body, '$.request.arms'), '[]')     AS arms  -- JSON
    FROM events WHERE kind = 'request';
    DROP VIEW outcomes;
    CREATE VIEW outcomes AS SELECT
        o.seq, o.at_s, o.episode_id, r.route AS route,
        json_extract(o.body, '$.outcome.end_reason')                    AS end_reason,
        json_extract(o.body, '$.outcome.status')                        AS status,
        json_extract(o.body, '$.outcome.answer')                        AS answer,
        json_extract(o.body, '$.outcome.response_id')                   AS response_id,
        json_extract(o.body, '$.outcome.usage.prompt_tokens')           AS prompt_tokens,
        json_extract(o.body, '$.outcome.usage.completion_tokens')       AS completion_tokens,
        json_extract(o.body, '$.outcome.usage.reasoning_tokens')        AS reasoning_tokens,
        json_extract(o.body, '$.outcome.usage.cached_tokens')           AS cached_tokens,
        json_extract(o.body, '$.outcome.overhead.probe_tokens')         AS probe_tokens,
        json_extract(o.body, '$.outcome.overhead.extra_prompt_tokens')  AS extra_prompt_tokens,
        json_extract(o.body, '$.outcome.overhead.cached_prompt_tokens') AS cached_prompt_tokens,
        json_extract(o.body, '$.outcome.overhead.discarded_tokens')     AS discarded_tokens,
        json_extract(o.body, '$.outcome.overhead.n_extra_calls')        AS n_extra_calls,
        json_extract(o.body, '$.outcome.stopped')                       AS stopped,
        json_extract(o.body, '$.outcome.stop_reason')                   AS stop_reason,
        json_extract(o.body, '$.outcome.stop_step')                     AS stop_step,
        json_extract(o.body, '$.outcome.would_answer')                  AS would_answer,
        json_extract(o.body, '$.outcome.decision')                      AS decision,
        json_extract(o.body, '$.outcome.finish_method')                 AS finish_method,
        json_extract(o.body, '$.outcome.handover_ms')                   AS handover_ms,
        json_extract(o.body, '$.outcome.tokens_saved_estimate')         AS tokens_saved_estimate,
        json_extract(o.body, '$.outcome.estimate_method')               AS estimate_method,
        json_extract(o.body, '$.outcome.degraded')                      AS degraded,
        json_extract(o.body, '$.outcome.vote')                          AS vote,
        json_extract(o.body, '$.outcome.unclosed')                      AS unclosed,
        json_extract(o.body, '$.outcome.duration_s')                    AS duration_s,
        json_extract(o.body, '$.outcome.ttft_s')                        AS ttft_s,
        json_extract(o.body, '$.outcome.calls')                         AS calls,  -- JSON
        json_extract(o.body, '$.outcome.model')                         AS model,
        json_extract(o.body, '$.outcome.system_fingerprint')            AS system_fingerprint,
        json_extract(o.body, '$.outcome.finish_step')                   AS finish_step,
        json_extract(o.body, '$.outcome.finish_answer')                 AS finish_answer,
        json_extract(o.body, '$.outcome.pair_arm')                      AS pair_arm,
        json_extract(o.body, '$.outcome.pair_propensity')               AS pair_propensity,
        json_extract(o.body, '$.outcome.pair_answer')                   AS pair_answer,
        json_extract(o.body, '$.outcome.pair_tokens')                   AS pair_tokens
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key
    WHERE o.kind = 'outcome';
    DROP VIEW steps;
    CREATE VIEW steps AS SELECT
        o.seq, o.episode_id, r.route AS route,
        json_extract(s.value, '$.index')         AS step,
        json_extract(s.value, '$.tokens')        AS tokens,
        json_extract(s.value, '$.answer')        AS answer,
        json_extract(s.value, '$.answer_source') AS answer_source,
        json_extract(s.value, '$.confidence')    AS confidence,
        json_extract(s.value, '$.entropy')       AS entropy,
        json_extract(s.value, '$.hedges')        AS hedges,
        json_extract(s.value, '$.probe_tokens')  AS probe_tokens,
        json_extract(s.value, '$.action')        AS action,
        json_extract(s.value, '$.reason')        AS reason,
        json_extract(s.value, '$.logprobs')      AS logprobs,  -- JSON
        coalesce(json_extract(s.value, '$.ctx_tokens'), 0) AS ctx_tokens,
        json_extract(s.value, '$.logprob')           AS logprob,
        json_extract(s.value, '$.stated_confidence') AS stated_confidence,
        json_extract(s.value, '$.said_done')         AS said_done,
        json_extract(s.value, '$.caller_action')     AS caller_action,
        json_extract(s.value, '$.draft_distance')    AS draft_distance,
        json_extract(s.value, '$.hedge_rate')        AS hedge_rate,
        json_extract(s.value, '$.loop_share')        AS loop_share,
        json_extract(s.value, '$.margin')            AS margin,
        json_extract(s.value, '$.mass')              AS mass,
        json_extract(s.value, '$.closed_entropy')    AS closed_entropy,
        coalesce(json_extract(s.value, '$.missing'), 0) AS missing
    FROM events o LEFT JOIN events r ON r.kind = 'request' AND r.key = o.key,
        json_each(o.body, '$.outcome.steps') s
    WHERE o.kind = 'outcome';
    """,
    """
    -- As it was, with which delivery of a request it is, and of which conversation.
    DROP VIEW requests;
    CREATE VIEW requests AS SELECT
        seq, at_s, episode_id, route,
        json_extract(body, '$.request.kind')           AS kind,
        json_extract(body, '$.request.mode')           AS mode,
        json_extract(body, '$.request.model')          AS model,
        json_extract(body, '$.request.stream')         AS stream,
        json_extract(body, '$.request.n_samples')      AS n_samples,
        json_extract(body, '$.request.audit')          AS audit,
        json_extract(body, '$.request.propensity')     AS propensity,
        json_extract(body, '$.request.policy_version') AS policy_version,
        json_extract(body, '$.request.certified')      AS certified,
        json_extract(body, '$.request.question_key')   AS question_key,
        json_extract(body, '$.request.ungoverned')     AS ungoverned,
        json_extract(body, '$.request.received_at_s')  AS received_at_s,
        coalesce(json_extract(body, '$.request.keep_rate'), 1.0) AS keep_rate,
        coalesce(json_extract(body, '$.request.kept_by'), '')    AS kept_by,
        coalesce(json_extract(body, '$.request.endpoint'), '/v1/chat/completions') AS endpoint,
        json_extract(body, '$.request.query')          AS query,        -- JSON
        coalesce(json_extract(body, '$.request.unit'), '')       AS unit,
        coalesce(json_extract(body, '$.request.setup'), '')      AS setup,
        coalesce(json_extract(body, '$.request.promise'), 'certified') AS promise,
        coalesce(json_extract(body, '$.request.sender'), '')     AS sender,
        coalesce(json_extract(body, '$.request.arms'), '[]')     AS arms,    -- JSON
        coalesce(json_extract(body, '$.request.delivery'), 1)    AS delivery,
        coalesce(json_extract(body, '$.request.conversation'), '') AS conversation
    FROM events WHERE kind = 'request';
    """,
    """
    -- As it was, but the key of a row now holds its sender beside the id.
    DROP VIEW feedback;
    CREATE VIEW feedback AS SELECT
        j.seq, j.at_s, j.feedback_id, j.episode_id, r.route AS route,
        r.seq IS NOT NULL AS joined,
        j.response_id, j.correct, j.gold, j.answer, j.rating, j.thumbs, j.comment, j.source, j.reason,
        j.metrics, j.satisfaction, j.event, j.user, j.sender, j.propensity, j.door, j.asked_for
    FROM (
        SELECT
            f.seq, f.at_s, json_extract(f.body, '$.feedback.feedback_id') AS feedback_id,
            -- Two answers with one response id: nobody can say which is meant, so neither.
            coalesce(f.episode_id, (
                SELECT CASE WHEN count(*) = 1 THEN max(o.key) END FROM events o
                WHERE o.kind = 'outcome' AND json_extract(o.body, '$.outcome.response_id')
                    = json_extract(f.body, '$.feedback.response_id')
            )) AS episode_id,
            json_extract(f.body, '$.feedback.response_id')  AS response_id,
            json_extract(f.body, '$.feedback.correct')      AS correct,
            json_extract(f.body, '$.feedback.gold')         AS gold,
            json_extract(f.body, '$.feedback.answer')       AS answer,
            json_extract(f.body, '$.feedback.rating')       AS rating,
            json_extract(f.body, '$.feedback.thumbs')       AS thumbs,
            json_extract(f.body, '$.feedback.comment')      AS comment,
            json_extract(f.body, '$.feedback.source')       AS source,
            json_extract(f.body, '$.feedback.reason')       AS reason,
            json_extract(f.body, '$.feedback.metrics')      AS metrics,       -- JSON: [[name, value], …]
            json_extract(f.body, '$.feedback.satisfaction') AS satisfaction,
            json_extract(f.body, '$.feedback.event')        AS event,
            json_extract(f.body, '$.feedback.user')         AS user,
            json_extract(f.body, '$.feedback.sender')       AS sender,
            json_extract(f.body, '$.feedback.propensity')   AS propensity,
            json_extract(f.body, '$.feedback.door')         AS door,
            json_extract(f.body, '$.feedback.asked_for')    AS asked_for
        FROM events f WHERE f.kind = 'feedback'
    ) j LEFT JOIN events r ON r.kind = 'request' AND r.key = j.episode_id;
    """,
    """
    -- A cache, too: of each route everything that its estimates are made of (assurance/runs.py), as JSON.
    CREATE TABLE tallies (
        route TEXT PRIMARY KEY,
        seq   INTEGER NOT NULL,  -- how far the log was summed up when it changed last
        body  TEXT NOT NULL
    );
    """,
)


def migrate(connection: sqlite3.Connection, where: str) -> None:
    """Bring the database to this version's shape; a second process that does the same waits.

    `where` names the file in errors. Raises StoreError when the file is not ours or is newer.
    """
    _write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(connection, where)
        if version == 0:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for migration in MIGRATIONS[version:]:
            for statement in _statements(migration):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Change a new file to write-ahead logging, for good.

    While others open the same new file SQLite refuses at once, whatever time-out was set: to wait with a lock held
    could be for ever.
    """
    wait_s = int(connection.execute("PRAGMA busy_timeout").fetchone()[0]) / 1000
    ends_s = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= ends_s:
                raise
            time.sleep(_LOOKS_S)
        else:
            return


def check_version(connection: sqlite3.Connection, where: str) -> int:
    """Return the file's schema version, 0 for an empty file.

    Raises StoreError when the file belongs to something else or to a newer version.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    n_objects = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if application != APPLICATION_ID and (n_objects or version):
        raise StoreError(f"store {where}: is a SQLite file of another program; name a new file")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"store {where}: has schema {version}, written by a newer version; "
            f"this one reads up to {len(MIGRATIONS)}: upgrade, or name another file"
        )
    return version


def check_pages(connection: sqlite3.Connection, where: str) -> None:
    """Read the file through and raise StoreError when a page is damaged; large files are skipped."""
    page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
    n_pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
    if page_bytes * n_pages > QUICK_CHECK_BYTES:
        return
    verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if verdict != "ok":
        raise StoreError(f"store {where}: damaged ({verdict}); restore a backup or name a new file")


def _statements(script: str) -> list[str]:
    """Split a script into statements: `executescript` would commit our transaction."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
