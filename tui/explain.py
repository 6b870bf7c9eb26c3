"""What each figure on the screens means: what it is, and what drives it, with what to do where there is something.

The keys are the fields of `Metrics`, `Gpu`, `Host` and `Server` where there is one. Screens name them in `explained()`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """A figure's name as screens show it, what it is, and what drives it: one sentence each."""

    title: str
    what: str
    drives: str


EXPLANATIONS: dict[str, Explanation] = {
    # An engine's figures
    "kv_cache_usage": Explanation(
        "KV cache usage",
        "The part of the KV cache's blocks that hold keys and values of requests in flight.",
        "It grows with the number and the length of running requests; near 100 % requests wait or are preempted: give "
        "the engine more memory, use an fp8 KV cache, or lower max_num_seqs.",
    ),
    "kv_cache_tokens": Explanation(
        "KV cache size",
        "How many tokens of context all running requests together can keep on the GPUs.",
        "It is what memory is left after weights and activations, divided by the bytes a token needs; raise "
        "gpu_memory_utilization, or make a token cheaper with kv_cache_dtype = fp8.",
    ),
    "max_concurrency": Explanation(
        "Maximum concurrency",
        "How many requests of the full context length fit into the KV cache at once; shorter ones fit more often.",
        "It is the KV cache's size divided by max_model_len; a shorter max_model_len raises the figure, not the cache.",
    ),
    "running": Explanation(
        "Running requests",
        "How many requests the engine works on at this moment; each step makes a token for every one of them.",
        "Clients drive it, up to max_num_seqs and the room in the KV cache; more of them raise tok/s, and ITL with it.",
    ),
    "waiting": Explanation(
        "Waiting requests",
        "How many requests have arrived and are not being worked on yet; their TTFT grows while they wait.",
        "They wait for room in the KV cache or for a place among max_num_seqs; if it stays above 0 the server is "
        "full: add another, or free KV cache. A sleeping server shows 0 although requests hang.",
    ),
    "prompt_tokens_per_s": Explanation(
        "Prompt tokens per second (in)",
        "How many tokens of prompts were read (prefilled) per second, over the last 5 s.",
        "It is compute-bound and comes in bursts as requests arrive; cached prefixes count too although they cost "
        "nearly nothing.",
    ),
    "generation_tokens_per_s": Explanation(
        "Generated tokens per second (out)",
        "How many tokens all requests together were given per second, over the last 5 s.",
        "It grows with the number of running requests, as a step reads the weights once for all of them, until memory "
        "bandwidth or compute is used up.",
    ),
    "prompt_tokens_total": Explanation(
        "Prompt tokens",
        "All tokens of prompts since the engine was started.",
        "Long system prompts and documents drive it; shared beginnings are cheap where the prefix cache holds them.",
    ),
    "generation_tokens_total": Explanation(
        "Generated tokens",
        "All tokens generated since the engine was started.",
        "It begins again at 0 with each start; rates are reckoned over that.",
    ),
    "requests_total": Explanation(
        "Finished requests",
        "All requests that ended since the engine was started: by a stop token, by length, or aborted.",
        "Where it stands still while requests run, they are long or stuck; look at the log.",
    ),
    "prefix_cache_hit_rate": Explanation(
        "Prefix-cache hit rate",
        "The part of prompt tokens in the last minute whose keys and values were in the cache already, from an earlier "
        "request with the same beginning.",
        "Shared system prompts and growing chats raise it, a full KV cache evicts; put what varies at a prompt's end.",
    ),
    "preemptions_total": Explanation(
        "Preemptions",
        "How often a running request had to give its KV cache away and is computed again later.",
        "They happen when running requests outgrow the KV cache, and cost time twice; lower max_num_seqs or "
        "max_model_len, or give the engine more memory.",
    ),
    "ttft": Explanation(
        "TTFT, time to first token",
        "How long requests of the last minute waited from their arrival for the first token; p99 is what 1 % exceeded.",
        "Waiting in the queue and reading the prompt make it up; long prompts and waiting requests drive it, prefix "
        "hits and chunked prefill help.",
    ),
    "itl": Explanation(
        "ITL, inter-token latency",
        "The time between one token of an answer and the next, as a reader of the stream sees it.",
        "A step takes longer the more requests run and the longer their contexts; prefills of others in the same step "
        "make p99. vLLM's first bucket ends at 10 ms: below it only the mean is exact.",
    ),
    "tpot": Explanation(
        "TPOT, time per output token",
        "Of one request, the mean time for each token after the first: (E2E − TTFT) / (tokens − 1).",
        "As ITL, but a mean per request, so that single hiccups vanish; 25 ms are 40 tok/s for one reader.",
    ),
    "e2e": Explanation(
        "E2E latency",
        "How long whole requests of the last minute took, from their arrival to the last token.",
        "It is about TTFT + tokens × ITL: the length of answers drives it; bound it with max_tokens. Of vLLM's wide "
        "buckets only the mean is exact: ≈ says that all were in one.",
    ),
    "goodput": Explanation(
        "Goodput",
        "The requests per second that kept all their targets, as TTFT and TPOT under their bounds.",
        "Throughput still grows with load when goodput has begun to fall: the load at its peak is what the server is "
        "good for.",
    ),
    "request_throughput": Explanation(
        "Requests per second",
        "How many requests ended per second over the whole load test.",
        "Below the rate that was offered the server cannot keep up, and latencies grow for as long as the test lasts.",
    ),
    "request_rate": Explanation(
        "Offered rate",
        "How many requests per second the load test sends, at random moments, whether or not earlier ones have ended.",
        "Choose it, or leave it out to send as fast as the concurrency allows.",
    ),
    "concurrency": Explanation(
        "Concurrency",
        "How many requests the load test keeps in flight at most.",
        "More of them raise throughput until the KV cache or max_num_seqs is full; beyond that only TTFT grows.",
    ),
    "sleep": Explanation(
        "Sleep",
        "A server that sleeps has given its GPUs' memory back and keeps its process, its port and 1.8 GB a GPU.",
        "sleep = true in its profile allows it; it wakes in about a second from level 1, in a few from level 2, "
        "instead of a start of a minute. Requests wait, or are told so.",
    ),
    "sleep_level": Explanation(
        "Level of sleep",
        "1 keeps the weights in host memory, 2 drops them and reads them from disk again; neither keeps the KV cache.",
        "gpubox takes level 1 where host memory has room for the copy, else 2, else it stops the server; a switch "
        "says why.",
    ),
    "idle": Explanation(
        "Sleeps in",
        "How much of its idle time is left before the server is put to sleep by itself, and how much that is in all.",
        "ttl in its profile sets it; any request begins it anew. With wake_on_request the next one wakes it.",
    ),
    "pinned": Explanation(
        "Host memory held for sleep",
        "What a server has pinned of the host's memory at its first sleep of level 1: about twice its weights.",
        "It is not given back when it wakes, only when it stops; max_sleeping_host_memory in config.toml bounds the "
        "sum over all servers.",
    ),
    "switch": Explanation(
        "Switch",
        "One server gets the GPUs of others: they sleep or stop, their memory comes back, it wakes or starts.",
        "The time is from the key to the first token; sleeping and waking take most of it, the first sleep of a "
        "server takes some 9 s more. If it fails, who served before serves again.",
    ),
    "sleep_state": Explanation(
        "Asleep",
        "Level 1 keeps the weights in host memory and drops the KV cache; level 2 drops both.",
        "Waking from level 1 takes under a second; level 2 must load weights again. Requests to a sleeping server "
        "hang until it wakes.",
    ),
    "max_model_len": Explanation(
        "Context length",
        "The most tokens a prompt and its answer may have together: max_model_len.",
        "The model's own limit bounds it, and one request of that length must fit into the KV cache; a lower value "
        "lets a start succeed on less memory.",
    ),
    # A server
    "state": Explanation(
        "State",
        "Where a server is in its life; ready means that the engine itself answered, not that its log says so.",
        "An exit that nobody asked for is failed, whatever its exit code; Enter on it, or its card, tells the cause.",
    ),
    "stage": Explanation(
        "Stage of a start",
        "What a starting engine is doing, by the stamps in its log; the bar is reckoned from earlier starts alike.",
        "Reading weights depends on the disk, compiling and CUDA graphs on the model; the compile cache makes the "
        "second start quicker.",
    ),
    "eta": Explanation(
        "Time left",
        "When the start is likely to be over, by the median of earlier starts of this profile on such GPUs.",
        "Without earlier starts there is none; a download or a cold compile cache makes it longer.",
    ),
    "port": Explanation(
        "Port",
        "Where the server's OpenAI-compatible interface listens on this box.",
        "The profile or the start chooses it, else the first free one from 8000; from elsewhere go through ssh -L.",
    ),
    "uptime": Explanation(
        "Uptime",
        "How long the server has served, since it first answered; a start's time stands beside its stage.",
        "Sleep, a lost engine or a restart begin it anew.",
    ),
    "profile_changed": Explanation(
        "Profile changed",
        "The profile's file is not any more what this server was started with.",
        "A running server keeps its old arguments; stop it and start its profile to take the new ones.",
    ),
    "attempt": Explanation(
        "Attempt",
        "How often the server has been started again by itself after a failure.",
        "Its profile's restart policy says how often and how soon; each attempt waits longer than the one before.",
    ),
    "foreign": Explanation(
        "Found, not started here",
        "A vLLM server that somebody started by hand: gpubox watches it and talks to it, and never signals it.",
        "Its port is read off its process; start it from a profile to have its log, stages and stop.",
    ),
    # A GPU
    "memory_used_bytes": Explanation(
        "GPU memory",
        "What NVML calls used: of every process on the GPU, and of the driver itself.",
        "An engine takes its part at start and keeps it, full KV cache or empty; so it tells what is assigned, not how "
        "busy the GPU is.",
    ),
    "memory_free_bytes": Explanation(
        "Free GPU memory",
        "What NVML would still give to a process on this GPU.",
        "vLLM needs gpu_memory_utilization × total of it at start, or it refuses; end what holds the rest, or ask for "
        "less.",
    ),
    "memory_total_bytes": Explanation(
        "GPU memory in all",
        "The GPU's memory as its driver tells it, a little below what its name promises.",
        "ECC and the driver keep the difference; gpu_memory_utilization is a share of this figure.",
    ),
    "utilization": Explanation(
        "GPU utilization",
        "The part of the last moments in which at least one kernel ran on the GPU.",
        "100 % says busy, not efficient: one small kernel at a time counts as much as all cores; compare power and "
        "tok/s.",
    ),
    "power_w": Explanation(
        "Power",
        "What the GPU draws now, in watts, against its limit.",
        "Compute drives it: prefill draws more than decoding, which waits for memory; at the limit clocks go down.",
    ),
    "temperature_c": Explanation(
        "Temperature",
        "The GPU's core temperature.",
        "Power and cooling drive it; from about 85–90 °C clocks are lowered: look at fans, airflow and neighbours.",
    ),
    "ecc_uncorrected": Explanation(
        "ECC errors, uncorrected",
        "Memory errors that could not be repaired since the driver was loaded; what read them was wrong or was ended.",
        "One can be chance, more are failing memory: drain the GPU, reset it, and have it replaced if they come back.",
    ),
    "ecc_corrected": Explanation(
        "ECC errors, corrected",
        "Memory errors that the hardware has repaired; no result was touched.",
        "A few are normal; many in a short time announce uncorrected ones.",
    ),
    "throttle": Explanation(
        "Throttling",
        "Why the GPU runs below the clocks it could: power cap, heat, or a brake of the hardware.",
        "The power cap is normal under full load; heat is not: look at cooling. A hardware brake is a fault of supply.",
    ),
    "xid": Explanation(
        "XID event",
        "An error that the driver has reported of the GPU, by NVIDIA's number.",
        "13, 31 and 43 are mostly a program's own fault; 48, 63, 64, 74, 79 and 94, 95 mean memory, link or a GPU that "
        "fell off the bus: drain it, and look at the system's log.",
    ),
    "tp_balance": Explanation(
        "Tensor-parallel balance",
        "How evenly a server's GPUs work: the one behind beside the one ahead, the worse of power over the last "
        "seconds and memory as it is now; memory alone while idle.",
        "All ranks wait for the slowest in each layer, and waiting counts as utilization, so power tells who works; "
        "a hot, throttled or shared GPU slows the others as well.",
    ),
    "nvlink": Explanation(
        "NVLink",
        "Which GPUs are linked directly with each other; others talk over PCIe.",
        "Tensor parallelism exchanges data in each layer: choose linked GPUs, which auto does.",
    ),
    "shares": Explanation(
        "Whose memory it is",
        "Each MiB in use on a GPU, by owner: server, run, foreign process, orphan, or unattributed.",
        "The parts sum up to what NVML calls used; unattributed is the driver's own, and processes that cannot be seen "
        "from here.",
    ),
    "orphan": Explanation(
        "Orphan",
        "What a server left on a GPU although its supervisor is gone; nobody will end it by itself.",
        "A SIGKILL of the parents makes them; reap them to get the memory back.",
    ),
    "grants": Explanation(
        "Assigned to",
        "Which servers hold the GPU in the machine's ledger, which the keepers of all its users share.",
        "A grant lasts as long as a process of the server lives, also before its memory is taken.",
    ),
    "processes": Explanation(
        "Processes on the GPU",
        "Who has a context on the GPU, and how much memory NVML counts for it.",
        "In a container the driver may tell pids of the host that cannot be seen here.",
    ),
    # Memory of a server
    "memory_parts": Explanation(
        "Memory of the server",
        "What its log told at start for each GPU, beside what NVML shows that it holds now.",
        "Weights, graphs and other are fixed by model and engine; the KV cache takes what is left of the share that "
        "gpu_memory_utilization grants.",
    ),
    "weights": Explanation(
        "Weights",
        "The model's parameters on one GPU.",
        "Parameters × bytes each, divided by tensor_parallel_size; quantize, or split over more GPUs, to shrink them.",
    ),
    "kv_cache": Explanation(
        "KV cache (memory)",
        "What is set aside on each GPU for keys and values, at start and as a whole.",
        "It is gpu_memory_utilization × total − weights − activation − what is not PyTorch's; full or empty, its size "
        "stays.",
    ),
    "activation": Explanation(
        "Activation",
        "The peak of working memory of one step, as measured at start; less of it may be in use now.",
        "max_num_batched_tokens and the model's width drive it; lower that to give the KV cache room.",
    ),
    "cuda_graphs": Explanation(
        "CUDA graphs",
        "Recorded kernel sequences that make small steps quick, one for each batch size.",
        "The number of captured sizes drives it, and some versions take it on top of gpu_memory_utilization; "
        "enforce_eager saves it and costs speed.",
    ),
    "other_memory": Explanation(
        "Other memory",
        "What the server holds on the GPU beyond the figures of its log.",
        "The CUDA context, NCCL's buffers and fragments make it up; half a GiB to two a process are normal.",
    ),
    "fit": Explanation(
        "Fit",
        "Whether weights, overhead and KV cache fit on the chosen GPUs, reckoned before the start.",
        "Weights come from the model's files, overhead from earlier starts alike, room from NVML now; it names what "
        "to change where it does not fit.",
    ),
    # The box
    "cpu_utilization": Explanation(
        "CPU",
        "The part of all cores that was busy over the last second.",
        "Tokenizing, sampling and the API server drive it; an engine on the CPU takes all it is given.",
    ),
    "load_1m": Explanation(
        "Load",
        "How many processes ran or waited for a core or the disk, on average over the last minute.",
        "Above the number of cores they wait for each other, and engines' schedulers suffer: look for who is busy.",
    ),
    "memory_available_bytes": Explanation(
        "Host memory",
        "What programs could still get without swapping; the rest is in use.",
        "Loading weights, sleeping servers (level 1) and CPU offload drive it; when it runs out the kernel kills an "
        "engine (exit by signal 9).",
    ),
    # Chat
    "context_tokens": Explanation(
        "Tokens of the chat",
        "How many tokens the conversation has so far, against the context length of its server.",
        "Each turn sends all of it again (the prefix cache makes that cheap); at the limit start a new one or cut it.",
    ),
    "answer_tokens_per_s": Explanation(
        "Tokens per second of an answer",
        "How fast this one answer came after its first token.",
        "It is 1 / ITL for this reader; other requests in the same batch slow it although the server's sum grows.",
    ),
    "temperature": Explanation(
        "Temperature (sampling)",
        "How freely the next token is chosen: 0 takes the likeliest, 1 follows the model's own odds.",
        "Lower it for code and facts, raise it for variety; at 0 the same prompt gives nearly the same answer.",
    ),
    "top_p": Explanation(
        "top_p",
        "Only the likeliest tokens that together reach this probability may be chosen.",
        "Lower values cut off the unlikely; change this or the temperature, seldom both.",
    ),
    "max_tokens": Explanation(
        "max_tokens",
        "The most tokens an answer may have; it then ends with 'length'.",
        "It bounds E2E latency and the KV cache a request can take; reasoning counts too.",
    ),
    # Fine-tuning
    "train_loss": Explanation(
        "Training loss",
        "How surprised the model is by the training texts, in nats a token; lower is better.",
        "It falls fast, then slowly; when evaluation loss rises meanwhile, the model learns by heart: stop earlier.",
    ),
    "learning_rate": Explanation(
        "Learning rate",
        "How far each step moves the trained parameters, along a schedule with a warm-up.",
        "Too high and the loss jumps or becomes NaN, too low and nothing happens; LoRA likes about 1e-4.",
    ),
}
"""By the figure's key: the field of `Metrics`, `Gpu`, `Host` or `Server` where there is one."""
