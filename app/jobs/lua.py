"""Redis scripts: what must not be torn apart, for up to 64 jobs in one call. Nothing newer than Redis 6.2.

Every time that decides something (a lease, a due job, an expiry) is read from Redis' own clock, so workers whose
clocks disagree still agree. Layout: RQ 3.0's; each script names the RQ code whose writes it makes.
"""

PRELUDE = """
local prefix = ARGV[1]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function job_key(id) return prefix .. ':job:' .. id end
-- anybody may have put anything there: one key that is no record must not make a script fail for all the others
local function is_record(id) return redis.call('TYPE', job_key(id)).ok == 'hash' end
local function wip_key(queue) return prefix .. ':wip:' .. queue end
local function parts(member) return string.match(member, '^(.*):([^:]*)$') end
local function forget_execution(id, execution)
    redis.call('DEL', prefix .. ':execution:' .. id .. ':' .. execution)
    redis.pcall('ZREM', prefix .. ':executions:' .. id, execution)  -- it may be of another type
end
local function run_again(id, queue)
    redis.call('HSET', job_key(id), 'status', 'queued', 'worker_name', '')
    redis.call('LPUSH', prefix .. ':queue:' .. queue, id)
end
local function run_in(id, queue, seconds)
    redis.call('HSET', job_key(id), 'status', 'scheduled', 'worker_name', '')
    redis.call('ZADD', prefix .. ':scheduled:' .. queue, now + seconds, id)
end
local function reason(err) return type(err) == 'table' and err.err or tostring(err) end
"""

CLAIM = (
    PRELUDE
    + """
-- KEYS rq:suspended, worker, its executions; then pairs: queue, its wip registry
-- ARGV prefix, most jobs, lease (s), worker name, time as RQ writes it, share ('order' or 'fair'),
--      how the execution ids of this claim begin, whether a suspect runs here (1), for each queue how many of its
--      jobs run here
-- As rq.worker: prepare_execution and prepare_job_execution. Fair: the queue with the fewest running is next.
-- A suspect was in work when two workers were lost; the third would be its last. A worker runs one at a time, and
-- delays the others, so that the innocent do not go down with the one that is not.
-- Answer: time, ids of what cannot be read, {queue's number, job id, execution id, hash} for each job,
--      number of ids without a record (jobs that were deleted or have expired) or that are elsewhere, {queue's
--      number, id, why} for each that could not be started
if redis.call('EXISTS', KEYS[1]) == 1 then return {'suspended'} end
local most, lease, worker, moment = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local queues = (#KEYS - 3) / 2
local started, lost, gone, members, wip, broken, mine = {}, {}, 0, {}, {}, {}, {}
local REGISTRIES = {scheduled = 'scheduled', finished = 'finished', failed = 'failed', stopped = 'failed',
    canceled = 'canceled'}
local has_suspect = ARGV[8] == '1'
math.randomseed(tonumber(clock[2]))
for number = 1, queues do wip[number] = {} end

local function queue_key(number) return KEYS[2 + 2 * number] end
local function fields_of(hash)
    local fields = {}
    for place = 1, #hash, 2 do fields[hash[place]] = hash[place + 1] end
    return fields
end
local function is_in(registry, member) return type(redis.pcall('ZSCORE', registry, member)) == 'string' end
-- an id may stand in a queue twice, when its record was deleted there and enqueued anew: the first one counts. Its
-- status alone is no proof: RQ's code has moments in which a job is 'started' or 'scheduled' and stands here only
local function is_elsewhere(id, job)
    if mine[id] then return true end
    if not job.origin or job.status == 'queued' then return false end
    if REGISTRIES[job.status] then
        return is_in(prefix .. ':' .. REGISTRIES[job.status] .. ':' .. job.origin, id)
    end
    if job.status ~= 'started' then return false end
    for _, execution in ipairs(redis.pcall('ZRANGE', prefix .. ':executions:' .. id, 0, -1)) do
        if is_in(wip_key(job.origin), id .. ':' .. execution) then return true end
    end
    return false
end

local function begin(number, id)
    local key = job_key(id)
    local hash = redis.pcall('HGETALL', key)
    if #hash == 0 and not hash.err then
        gone = gone + 1
        return
    end
    if hash.err or not string.find(id, '^[%w_-]+$') then
        lost[#lost + 1] = id
        return
    end
    local job = fields_of(hash)
    if is_elsewhere(id, job) then
        gone = gone + 1
        return
    end
    if (tonumber(job.crashes) or 0) >= 2 then
        if has_suspect then
            run_in(id, string.sub(queue_key(number), #prefix + 8), 1 + math.random())
            return
        end
        has_suspect = true
    end
    local execution = string.format('%s%08x', ARGV[7], #started)
    local member = id .. ':' .. execution
    redis.call('HSET', key, 'status', 'started', 'started_at', moment, 'last_heartbeat', moment,
        'worker_name', worker)
    redis.call('PERSIST', key)
    local record, all = prefix .. ':execution:' .. member, prefix .. ':executions:' .. id
    redis.call('HSET', record, 'id', execution, 'job_id', id, 'created_at', now, 'last_heartbeat', now,
        'worker_name', worker)
    redis.call('EXPIRE', record, lease)
    redis.call('ZADD', all, now + lease + 60, execution)
    redis.call('EXPIRE', all, lease + 60)
    local here = wip[number]
    here[#here + 1] = now + lease
    here[#here + 1] = member
    members[#members + 1] = member
    started[#started + 1] = {number, id, execution, hash}
    mine[id] = true
end


-- a key of another type in a queue's place is an empty queue: the jobs of the others have left theirs
local function pop(number, count)
    local ids = redis.pcall('LPOP', queue_key(number), count)
    return ids and not ids.err and #ids > 0 and ids or nil
end
-- one that cannot be started is no reason to lose the others, which have left their queues as well
local function start(number, id)
    local is_done, err = pcall(begin, number, id)
    if not is_done then broken[#broken + 1] = {number, id, reason(err)} end
end

if ARGV[6] == 'fair' then
    local running, empty = {}, {}
    for number = 1, queues do running[number] = tonumber(ARGV[8 + number]) end
    while #started + #broken < most do
        local next_one = nil
        for number = 1, queues do
            if not empty[number] and (not next_one or running[number] < running[next_one]) then
                next_one = number
            end
        end
        if not next_one then break end
        local ids = pop(next_one, 1)
        if ids then
            start(next_one, ids[1])
            running[next_one] = running[next_one] + 1
        else
            empty[next_one] = true
        end
    end
else
    for number = 1, queues do
        while #started + #broken < most do
            local ids = pop(number, most - #started - #broken)
            if not ids then break end
            for _, id in ipairs(ids) do start(number, id) end
        end
    end
end

local function register()
    for number = 1, queues do
        if #wip[number] > 0 then redis.call('ZADD', KEYS[3 + 2 * number], unpack(wip[number])) end
    end
    redis.call('SADD', KEYS[3], unpack(members))
    redis.call('EXPIRE', KEYS[3], lease + 60)
    redis.call('HSET', KEYS[2], 'state', 'busy')
end

if #started > 0 then
    local is_done, err = pcall(register)
    if not is_done then
        for _, each in ipairs(started) do broken[#broken + 1] = {each[1], each[2], reason(err)} end
        started = {}
    end
end
for _, each in ipairs(broken) do
    redis.pcall('HSET', job_key(each[2]), 'status', 'queued')
    redis.pcall('DEL', prefix .. ':executions:' .. each[2])  -- of another type, perhaps
    redis.call('RPUSH', queue_key(each[1]), each[2])
end
return {tostring(now), lost, started, gone, broken}
"""
)

SETTLE = (
    PRELUDE
    + """
-- KEYS worker, its executions.  ARGV prefix; then for each job
--      one line of: kind, id, execution id, start and end (unix s), end as RQ writes it, tries, delay (s), result
--      type, ttl of the job, ttl of its results ('-' none), 1 to settle in spite of dependents, numbers of result
--      fields and job fields, queue; then those fields
-- kinds: finished, failed, stopped; again (after a delay), back (to the front: nothing happened)
-- As rq.worker: handle_job_success, handle_job_failure; again and back are arq's.
-- Answer: {number, 'late'} where another run has the job by now, {number, 'rq'} where only RQ's own code can
--      settle, {number, 'broken', why} where it could not be written
local answer, gone, totals, seconds = {}, {}, {finished = 0, failed = 0}, 0
local LINE = '^' .. string.rep('(%S+) ', 14) .. '(.*)$'

local function write_result(job, fields)
    local key = prefix .. ':results:' .. job.id
    local entry = {'XADD', key, 'MAXLEN', '~', 10, '*', 'type', job.type,
        'worker_name', string.sub(KEYS[1], #prefix + 9), 'execution_id', job.execution,
        'execution_started_at', job.started, 'execution_ended_at', job.ended, unpack(fields)}
    if type(redis.pcall(unpack(entry))) == 'table' then  -- an error: somebody has put something else there
        redis.call('DEL', key)
        redis.call(unpack(entry))
    end
    if job.results_ttl == '-1' then
        redis.call('PERSIST', key)
    elseif job.results_ttl ~= '-' then
        redis.call('EXPIRE', key, job.results_ttl)
    end
end

local function register(registry, job, forever)
    local id, ttl, key = job.id, tonumber(job.ttl), job_key(job.id)
    local score = now + ttl
    if ttl == 0 then
        redis.call('DEL', key, prefix .. ':results:' .. id, prefix .. ':job::' .. id .. ':dependencies')
        return
    end
    if ttl > 0 then
        redis.call('EXPIRE', key, ttl)
        redis.call('EXPIRE', prefix .. ':job::' .. id .. ':dependencies', ttl)
    else
        score = ttl == -1 and forever or ttl
    end
    redis.call('ZADD', registry, score, id)
end

local function run_later(job, fields)
    if #fields > 0 then redis.call('HSET', job_key(job.id), unpack(fields)) end
    redis.call('HSET', job_key(job.id), 'job_try', job.tries, 'number_of_retries', job.tries)
    if tonumber(job.delay) > 0 then
        run_in(job.id, job.queue, tonumber(job.delay))
    else
        run_again(job.id, job.queue)
    end
end

local function settle(number, job, result_fields, job_fields)
    local id, kind, key = job.id, job.kind, job_key(job.id)
    local member = id .. ':' .. job.execution
    local over = kind == 'finished' or kind == 'failed' or kind == 'stopped'
    if over and job.alone ~= '1' and redis.call('EXISTS', key .. ':dependents') == 1 then
        answer[#answer + 1] = {number, 'rq'}
        return
    end
    gone[#gone + 1] = member
    forget_execution(id, job.execution)
    if redis.call('ZREM', wip_key(job.queue), member) == 0 then
        answer[#answer + 1] = {number, 'late'}
        return
    end
    if not is_record(id) then return end
    if kind == 'back' then
        redis.call('HSET', key, 'job_try', job.tries)
        run_again(id, job.queue)
        return
    end
    local total = kind == 'finished' and 'finished' or 'failed'
    totals[total] = totals[total] + 1
    seconds = seconds + tonumber(job.ended) - tonumber(job.started)
    if kind == 'again' then
        run_later(job, job_fields)
    else
        redis.call('HSET', key, 'status', kind, 'ended_at', job.moment, 'last_heartbeat', job.moment,
            unpack(job_fields))
        if kind == 'finished' then
            register(prefix .. ':finished:' .. job.queue, job, '+inf')
        else
            register(prefix .. ':failed:' .. job.queue, job, -1)
        end
    end
    job.is_placed = true
    if kind == 'again' or job.ttl ~= '0' then write_result(job, result_fields) end
end

-- one that cannot be written must not keep the others from being written; it fails, if it is nowhere yet
local function try_to_settle(number, job, result_fields, job_fields)
    local is_done, err = pcall(settle, number, job, result_fields, job_fields)
    if is_done then return end
    answer[#answer + 1] = {number, 'broken', reason(err)}
    if job.is_placed then return end
    redis.pcall('HSET', job_key(job.id), 'status', 'failed', 'ended_at', job.moment)
    redis.pcall('EXPIRE', job_key(job.id), 31536000)
    redis.pcall('ZADD', prefix .. ':failed:' .. job.queue, now + 31536000, job.id)
end

local function slice(first, count)
    local fields = {}
    for place = first, first + 2 * count - 1 do fields[#fields + 1] = ARGV[place] end
    return fields
end

local at, number = 2, 1
while at <= #ARGV do
    local job = {}
    local results, fields
    job.kind, job.id, job.execution, job.started, job.ended, job.moment, job.tries, job.delay, job.type, job.ttl,
        job.results_ttl, job.alone, results, fields, job.queue = string.match(ARGV[at], LINE)
    results, fields = tonumber(results), tonumber(fields)
    try_to_settle(number, job, slice(at + 1, results), slice(at + 1 + 2 * results, fields))
    at, number = at + 1 + 2 * (results + fields), number + 1
end
if #gone > 0 then redis.call('SREM', KEYS[2], unpack(gone)) end
if totals.finished > 0 then redis.call('HINCRBY', KEYS[1], 'successful_job_count', totals.finished) end
if totals.failed > 0 then redis.call('HINCRBY', KEYS[1], 'failed_job_count', totals.failed) end
if seconds > 0 then redis.call('HINCRBYFLOAT', KEYS[1], 'total_working_time', string.format('%.6f', seconds)) end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('HSET', KEYS[1], 'state', 'idle') end
return answer
"""
)
