"""Redis scripts of the upkeep: due jobs, heartbeats, and what dead workers left behind."""

from app.jobs.lua import PRELUDE

MOVE_DUE = (
    PRELUDE
    + """
-- KEYS rq:queues; then triples: scheduled registry, queue, scheduler's lock
-- ARGV prefix, most jobs a queue, time as RQ writes it, our mark in the lock, its life (s)
-- As rq.scheduler.RQScheduler.enqueue_scheduled_jobs; due_at is ours, for arq's score. ZREM decides between our
-- workers; a stock scheduler, which does not ask, is kept away by its own lock, and where one holds it the moving
-- is left to it.
-- Answer: seconds until the next job is due ('' for none), how many have been moved
local soonest, moved = nil, 0
for place = 2, #KEYS, 3 do
    local registry, queue, lock = KEYS[place], KEYS[place + 1], KEYS[place + 2]
    local first = redis.call('ZRANGE', registry, 0, 0, 'WITHSCORES')[2]
    if first then
        local holder = redis.call('GET', lock)
        if not holder or holder == ARGV[4] then
            redis.call('SET', lock, ARGV[4], 'EX', ARGV[5])
            local due = redis.call('ZRANGEBYSCORE', registry, '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
            for at = 1, #due, 2 do
                local id = due[at]
                redis.call('ZREM', registry, id)
                if is_record(id) then
                    redis.call('HSET', job_key(id), 'status', 'queued', 'enqueued_at', ARGV[3],
                        'due_at', due[at + 1])
                    redis.call('RPUSH', queue, id)
                    redis.call('SADD', KEYS[1], queue)
                    moved = moved + 1
                end
            end
            first = redis.call('ZRANGE', registry, 0, 0, 'WITHSCORES')[2]
            if first then
                local wait = math.max(0, tonumber(first) - now)
                if not soonest or wait < soonest then soonest = wait end
            end
        end
    end
end
return {soonest and tostring(soonest) or '', moved}
"""
)

TAKE_BACK = (
    PRELUDE
    + """
-- KEYS wip registry.  ARGV prefix, queue's name, most crashes
-- Jobs whose worker has not been heard of run again, at the front; rq.registry.StartedJobRegistry.cleanup would
-- fail them. Answer: ids taken back, then members whose job has ended too many workers
local back, poison = {}, {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)) do
    local id, execution = parts(member)
    if id and is_record(id) and redis.call('HGET', job_key(id), 'status') == 'started' then
        if redis.call('HINCRBY', job_key(id), 'crashes', 1) >= tonumber(ARGV[3]) then
            redis.call('ZADD', KEYS[1], now + 60, member)
            poison[#poison + 1] = member
        else
            redis.call('ZREM', KEYS[1], member)
            forget_execution(id, execution)
            redis.call('HINCRBY', job_key(id), 'job_try', 1)
            run_again(id, ARGV[2])
            back[#back + 1] = id
        end
    else
        redis.call('ZREM', KEYS[1], member)
    end
end
return {back, poison}
"""
)

DISOWN = (
    PRELUDE
    + """
-- KEYS a worker's executions.  ARGV prefix, how the execution ids of a claim begin
-- A claim whose answer was lost: what it started is put back, as if it had never been taken.
local back = 0
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local id, execution = parts(member)
    if id and string.sub(execution, 1, #ARGV[2]) == ARGV[2] then
        redis.call('SREM', KEYS[1], member)
        forget_execution(id, execution)
        local queue = is_record(id) and redis.call('HGET', job_key(id), 'origin')
        if queue and redis.call('ZREM', wip_key(queue), member) == 1 then
            run_again(id, queue)
            back = back + 1
        end
    end
end
return back
"""
)

BEAT = (
    PRELUDE
    + """
-- KEYS worker, its executions.  ARGV prefix, lease (s), life of the worker's records (s), worker's name, time as RQ
--      writes it, the field that marks arq's abort; then for each job queue, id, execution id, its start (unix s)
-- As rq.worker: heartbeat, maintain_heartbeats. Answer: whether Redis knows the worker, executions lost to others,
--      executions that are to be aborted: the command may not have been heard
local lease, moment, lost, aborted = tonumber(ARGV[2]), ARGV[5], {}, {}
local known = redis.call('HEXISTS', KEYS[1], 'birth')
redis.call('HSET', KEYS[1], 'last_heartbeat', moment)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
for at = 7, #ARGV, 4 do
    local queue, id, execution = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local member = id .. ':' .. execution
    if redis.call('ZSCORE', wip_key(queue), member) then
        local record, all = prefix .. ':execution:' .. member, prefix .. ':executions:' .. id
        redis.call('ZADD', wip_key(queue), now + lease, member)
        redis.call('HSET', record, 'id', execution, 'job_id', id, 'created_at', ARGV[at + 3], 'last_heartbeat', now,
            'worker_name', ARGV[4])
        redis.call('EXPIRE', record, lease)
        redis.call('ZADD', all, now + lease + 60, execution)
        redis.call('EXPIRE', all, lease + 60)
        if is_record(id) then
            redis.call('HSET', job_key(id), 'last_heartbeat', moment)
            if redis.call('HEXISTS', job_key(id), ARGV[6]) == 1 then aborted[#aborted + 1] = execution end
        end
    elseif redis.call('EXISTS', job_key(id)) == 1 then
        lost[#lost + 1] = execution  -- no entry and no job: Redis lost its memory, and nobody else runs it
        forget_execution(id, execution)
        redis.call('SREM', KEYS[2], member)
    end
end
return {known, lost, aborted}
"""
)

UNSTICK = """
-- KEYS intermediate list, queue.  ARGV ids that lay there for too long
-- As rq.intermediate_queue.IntermediateQueue.cleanup, but the job runs instead of failing.
local back = 0
for _, id in ipairs(ARGV) do
    if redis.call('LREM', KEYS[1], 1, id) > 0 then
        redis.call('LPUSH', KEYS[2], id)
        back = back + 1
    end
end
return back
"""
