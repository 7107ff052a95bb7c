"""Traditional Chinese (Taiwan) for every message of `finetuning.i18n`: English template -> Chinese template.

In the order of the source files. Terms that engineers in Taiwan say in English stay English: token, GPU, LoRA, batch.
"""

from __future__ import annotations  # Pythons that are too old read this file, to say so

MESSAGES: dict[str, str] = {
    # finetuning/interpreter.py
    (
        "Python {oldest} or newer is needed, and {python} is {version}: run `make venv PYTHON=python3.12` and use "
        ".venv/bin/python, or `python3.12 -m pip install .`"
    ): (
        "需要 Python {oldest} 以上，而 {python} 是 {version}：請執行 `make venv PYTHON=python3.12` 後使用 .venv/bin/python，"
        "或執行 `python3.12 -m pip install .`"
    ),
    (
        "{python} lacks {packages}: run `make venv` and use .venv/bin/python, or install what is needed with "
        "`{python} -m pip install .`"
    ): ("{python} 缺少 {packages}：請執行 `make venv` 後使用 .venv/bin/python，或用 `{python} -m pip install .` 安裝所需套件"),
    (
        "torch {oldest} or newer is needed, and {python} has {version}: run `make venv` and use .venv/bin/python, or "
        "upgrade it with `{python} -m pip install .`"
    ): (
        "需要 torch {oldest} 以上，而 {python} 的是 {version}：請執行 `make venv` 後使用 .venv/bin/python，"
        "或用 `{python} -m pip install .` 升級"
    ),
    # finetuning/on_demand.py
    "{purpose}: the package {package} is needed, and {python} lacks it: {python} -m pip install {package}": (
        "{purpose}：需要 {package} 套件，而 {python} 沒有：{python} -m pip install {package}"
    ),
    "data compressed by Zstandard": "以 Zstandard 壓縮的資料",
    "data in Parquet files": "Parquet 檔的資料",
    "scores of answers": "回答的評分",
    "{verb} is a command of its own: finetune {verb} …, or python -m finetuning {verb} …": (
        "{verb} 是獨立的指令：finetune {verb} …，或 python -m finetuning {verb} …"
    ),
    "{count} process{count:es} share {cores} core{cores:s} and take turns; give --num_gpus {cores}": (
        "{count} 個行程輪流使用 {cores} 個核心；請給 --num_gpus {cores}"
    ),
    # finetuning/cli/main.py: groups and flags
    "Basic execution": "基本執行選項",
    "Slurm": "Slurm",
    "Slurm account": "Slurm 帳戶",
    "Slurm partition": "Slurm partition",
    "Hardware": "硬體",
    "number of machines": "機器數量",
    "Model and data": "模型與資料",
    "folder with training.jsonl, validation.jsonl and test.jsonl, or one raw .jsonl (required)": (
        "內有 training.jsonl、validation.jsonl、test.jsonl 的資料夾，或單一原始 .jsonl 檔（必填）"
    ),
    "Hugging Face token; also read from HF_TOKEN or `hf auth login`; not needed for a local folder": (
        "Hugging Face token；也會讀取 HF_TOKEN 或 `hf auth login` 的登入；使用本機資料夾時不需要"
    ),
    "Training": "訓練",
    "a packed row may hold micro_batch_size x seq_length tokens": ("每個打包列可放 micro_batch_size × seq_length 個 token"),
    "Model parallelism": "模型平行化",
    "tensor parallel degree": "張量平行數",
    "pipeline parallel degree": "管線平行數",
    "context parallel degree": "上下文平行數",
    "Samples": "樣本",
    "system message put before every sample": "放在每個樣本之前的 system 訊息",
    "What is trained": "訓練範圍",
    "adapters are scaled by alpha / rank": "adapter 的縮放倍率是 alpha / rank",
    "Optimizer": "最佳化器",
    "learning rate at the end of the cosine": "餘弦排程結束時的學習率",
    "decides sample order and adapter initialisation": "決定樣本順序與 adapter 的初始值",
    "Memory and speed": "記憶體與速度",
    "Evaluation, checkpoints and logs": "評估、檢查點與紀錄",
    "longest generated answer, in tokens": "生成的回答最多幾個 token",
    "resume although data, template, batch size or sequence length changed": (
        "即使資料、模板、批次大小或序列長度改變，仍接續訓練"
    ),
    "--log_artifacts has no effect without --mlflow_tracking_uri or --wandb_project": (
        "沒有 --mlflow_tracking_uri 或 --wandb_project 時，--log_artifacts 沒有作用"
    ),
    "--mlflow_tracking_uri {address}: nothing answers there ({reason}); start the server, correct the address, or leave the "
    "flag out": "--mlflow_tracking_uri {address}：那裡沒有回應（{reason}）；請啟動伺服器、更正位址，或不要給此參數",
    "--mlflow_tracking_uri {address}: cannot write to {folder}": "--mlflow_tracking_uri {address}：無法寫入 {folder}",
    "no answer in {seconds:.0f} s": "{seconds:.0f} 秒內沒有回應",
    "the MLflow experiment {name} was deleted there; restore it, or give another --experiment": (
        "那裡的 MLflow 實驗 {name} 已被刪除；請還原它，或給另一個 --experiment"
    ),
    "has no effect, as W&B is disabled (WANDB_MODE)": "沒有作用，因為 W&B 已停用（WANDB_MODE）",
    "{server} does not answer ({reason}); WANDB_MODE=offline keeps the records here for `wandb sync`": (
        "{server} 沒有回應（{reason}）；WANDB_MODE=offline 會把紀錄留在這裡，之後用 `wandb sync` 上傳"
    ),
    "{server} does not let you in ({reason}); log in with `wandb login`, or set WANDB_MODE=offline": (
        "{server} 不讓你登入（{reason}）；請執行 `wandb login`，或設定 WANDB_MODE=offline"
    ),
    "{tracker} takes no records ({reason}); the training goes on, and they are sent from metrics.csv later": (
        "{tracker} 不接受紀錄（{reason}）；訓練繼續進行，紀錄之後會從 metrics.csv 補送"
    ),
    "{tracker} takes records again; it has got steps {first} to {last}": (
        "{tracker} 又接受紀錄了；已補送第 {first} 到 {last} 步"
    ),
    "{tracker} has got what it missed": "{tracker} 已收到先前缺少的紀錄",
    "{tracker} takes records again": "{tracker} 又接受紀錄了",
    "waiting up to {seconds:.0f} s for {trackers}": "最多等待 {trackers} {seconds:.0f} 秒",
    "{tracker} has not got {what} ({reason}); metrics.csv has all steps, and the same command sends what is missing": (
        "{tracker} 沒有收到{what}（{reason}）；metrics.csv 有所有步驟，執行同一個指令會補送缺少的部分"
    ),
    "steps {first} to {last}": "第 {first} 到 {last} 步",
    "the end of the run, or its files": "執行的結尾或其檔案",
    "it is slow": "它太慢",
    "its client has not uploaded everything; `wandb sync {folder}` does": (
        "它的用戶端還沒有全部上傳；`wandb sync {folder}` 會上傳"
    ),
    "folder that holds the experiments": "放置各實驗的資料夾",
    "language of the messages; left out: the locale's": "訊息的語言；不給則依系統語系",
    "This command": "本指令",
    "YAML file of settings; flags override it": "YAML 設定檔；指令列參數優先",
    "check everything, print the resolved run and stop": "檢查一切、印出完整設定後結束",
    "show this help and stop": "顯示這份說明後結束",
    "show the version and stop": "顯示版本後結束",
    " (default: {value})": "（預設：{value}）",
    # finetuning/cli/main.py: the rest
    'Fine-tunes Llama 3.1 on a folder of {{"input": …, "output": …}} JSONL.': (
        '以內含 {{"input": …, "output": …}} JSONL 的資料夾微調 Llama 3.1。'
    ),
    "usage: finetune VERB …": "用法：finetune 動詞 …",
    "Stopped. Nothing was started.": "已停止。未啟動任何工作。",
    "Nothing was started. {count} to mend:": "未啟動任何工作。有 {count} 處要修正：",
    "--config {path}: hf_token does not belong in a file; set HF_TOKEN or run `hf auth login`": (
        "--config {path}：hf_token 不該寫在檔案裡；請設定 HF_TOKEN，或執行 `hf auth login`"
    ),
    # finetuning/config/secrets.py
    "what looks like a token or key": "看起來是 token 或金鑰的內容",
    "an address with a password": "帶有密碼的網址",
    "a value of {name}": "{name} 的值",
    "a header with a key": "帶有金鑰的標頭",
    "a user with a password": "帶有密碼的使用者",
    "--{name} holds the Hugging Face token; it must not come into a file. Jobs need no token": (
        "--{name} 含有 Hugging Face token，不可寫入檔案。工作不需要 token"
    ),
    "{given} holds {what}, which would stand in run.yaml, in job scripts and in process lists; {way}": (
        "{given} 含有{what}，會出現在 run.yaml、工作腳本與行程清單中；{way}"
    ),
    "give the address without it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write them to "
    "~/.mlflow/credentials, which jobs can read too": (
        "請給不含密碼的網址，並設定 MLFLOW_TRACKING_USERNAME 與 MLFLOW_TRACKING_PASSWORD，"
        "或寫入工作也讀得到的 ~/.mlflow/credentials"
    ),
    "give the image without it, and log in to the registry: ~/.config/enroot/.credentials or `apptainer registry login`": (
        "請給不含密碼的映像檔名稱，並登入 registry：~/.config/enroot/.credentials 或 `apptainer registry login`"
    ),
    "write a placeholder instead; the model would learn it, too": "請改寫成代稱；否則模型也會學到",
    "log in once with the tool that needs it (wandb login, hf auth login, ~/.netrc), or read it from a file of yours: "
    """--setup 'export NAME="$(cat ~/.name)"'""": (
        "請用需要它的工具登入一次（wandb login、hf auth login、~/.netrc），或從自己的檔案讀取："
        """--setup 'export NAME="$(cat ~/.name)"'"""
    ),
    # finetuning/launch/disk.py
    "disk": "磁碟",
    "up to {needed:.1f} GiB of {free:.1f} GiB free: {what}": "最多 {needed:.1f} GiB，可用 {free:.1f} GiB：{what}",
    "{folder}: the run needs {needed:.1f} GiB and {free:.1f} GiB are free ({what}); what would work: {ways}": (
        "{folder}：這次執行需要 {needed:.1f} GiB，可用 {free:.1f} GiB（{what}）；可行的做法：{ways}"
    ),
    "an --experiments_dir with more room": "空間較大的 --experiments_dir",
    "{count} checkpoint{count:s} of {size:.1f} GiB": "{count} 個 {size:.1f} GiB 的 checkpoint",
    "the result {size:.1f} GiB": "結果 {size:.1f} GiB",
    "tokens {size:.1f} GiB": "token {size:.1f} GiB",
    "{size:.1f} GiB of checkpoints are there already": "已有 {size:.1f} GiB 的 checkpoint",
    # finetuning/launch/slurm/gpu_memory.py
    "--gpu_memory_gib has no effect: the processes run on CPUs": "--gpu_memory_gib 沒有作用：程序在 CPU 上執行",
    "{name}, measured by finetune doctor --slurm on {day}": "{name}，finetune doctor --slurm 於 {day} 量測",
    "Slurm's name of the GPUs: {names}": "依 Slurm 對 GPU 的名稱：{names}",
    "--gpu_memory_gib is needed: Slurm does not say how much memory the GPUs of partition {partition} have (it calls them "
    "{types}). Give it, as in --gpu_memory_gib 80, or let finetune doctor --slurm -p {partition} measure it": (
        "需要 --gpu_memory_gib：Slurm 沒有說明 partition {partition} 的 GPU 有多少記憶體（名稱為 {types}）。請給出，例如 "
        "--gpu_memory_gib 80，或執行 finetune doctor --slurm -p {partition} 量測"
    ),
    "{gib:.0f} GiB each; jobs of partition {partition} are planned with it": (
        "每個 {gib:.0f} GiB；partition {partition} 的工作會依此規劃"
    ),
    "partition {name}: Slurm does not say how much memory its GPUs have": "partition {name}：Slurm 沒有說明 GPU 有多少記憶體",
    "finetune doctor --slurm -p {name} measures it; else give --gpu_memory_gib": (
        "finetune doctor --slurm -p {name} 可以量測；否則請給 --gpu_memory_gib"
    ),
    # finetuning/launch/slurm/shell.py
    "there is no bash on this machine, which checks job scripts": "這台機器沒有 bash，無法檢查工作腳本",
    "it ends in a backslash, which would take the next line of the job script with it": (
        "結尾是反斜線，會把工作腳本的下一行一起接上去"
    ),
    "--setup: bash cannot read it: {problem}": "--setup：bash 無法解讀：{problem}",
    "the job script of {template}: bash cannot read it: {problem}": "{template} 產生的工作腳本：bash 無法解讀：{problem}",
    "{text!r} would be more than one line of the job script": "{text!r} 在工作腳本中會超過一行",
    "{given}: there is no such file": "{given}：沒有這個檔案",
    "{given}: {reason}; known variables: {known}": "{given}：{reason}；可用的變數：{known}",
    "--{name} {text!r}: {word!r} belongs to no option": "--{name} {text!r}：{word!r} 不屬於任何選項",
    "--{name} {value!r}: not UTF-8": "--{name} {value!r}：不是 UTF-8",
    "--{name} {value!r}: {rule}": "--{name} {value!r}：{rule}",
    "has control characters": "含有控制字元",
    "must be one line, without control characters": "必須是一行，且不含控制字元",
    # finetuning/config: flags
    "where it runs: local starts torchrun on this machine; slurm submits a job, see docs/slurm.md": "在哪裡執行：local 在本機啟動 torchrun；slurm 送出工作，見 docs/slurm.md",
    "name of the experiment and of its folder; the same name goes on, another name starts anew": "實驗與資料夾的名稱；相同名稱會接續，換名稱則重新開始",
    "more folders in the container, comma-separated FOLDER or FOLDER:TARGET; code, data, model and experiment always are": "容器中另外掛載的資料夾，以逗號分隔，FOLDER 或 FOLDER:TARGET；程式、資料、模型與實驗一定會掛載",
    "Python of the nodes": "節點上的 Python",
    "this one; in a container python3": "目前這一個；容器內是 python3",
    "the partition's": "依 partition",
    "sbatch option that asks for GPUs: auto, gpus-per-node, gres; none: CPU processes": "向 sbatch 要 GPU 的選項：auto、gpus-per-node、gres；none：CPU 行程",
    "memory of each GPU of the nodes in GiB": "節點上每個 GPU 的記憶體（GiB）",
    "as measured, or by Slurm's name": "依量測或 Slurm 的名稱",
    "CPUs of each node": "每個節點的 CPU 數",
    "the share of its GPUs": "依 GPU 比例",
    "with all GPUs of a node all, else the cluster's": "要全部 GPU 時是全部，否則依叢集",
    "the cluster's": "依叢集",
    'more options of sbatch in one text, e.g. "--reservation=r --mail-type=END"': '其他 sbatch 選項，寫成一串文字，例如 "--reservation=r --mail-type=END"',
    'variables of the workers in one text, e.g. "NCCL_SOCKET_IFNAME=ib0"': '訓練行程的環境變數，寫成一串文字，例如 "NCCL_SOCKET_IFNAME=ib0"',
    "job script of your own, see docs/slurm.md": "自己的工作腳本，見 docs/slurm.md",
    "ours": "內建的",
    "GPUs per machine; on a machine without CUDA, CPU processes": "每台機器的 GPU 數；沒有 CUDA 的機器上是 CPU 行程數",
    "NeMo or Megatron checkpoint with the weights to start from; see docs/formats.md": "含有起始權重的 NeMo 或 Megatron 檢查點；見 docs/formats.md",
    "optimizer steps": "最佳化器步數",
    "one epoch": "一個 epoch",
    "samples per optimizer step; a multiple of micro_batch_size × data parallel size": "每個最佳化器步的樣本數；須為 micro_batch_size × 資料平行數的倍數",
    "a packed row may hold micro_batch_size × seq_length tokens; more needs more memory (see --row_length)": "每個打包列可放 micro_batch_size × seq_length 個 token；越大越吃記憶體（見 --row_length）",
    "tensor parallel degree: GPUs that share each matrix product": "張量平行數：幾個 GPU 分擔每個矩陣乘法",
    "pipeline parallel degree: stages the layers are cut into": "管線平行數：把各層切成幾段",
    "context parallel degree: GPUs that share each sequence": "上下文平行數：幾個 GPU 分擔每個序列",
    "whole copies of the sharded weights, so that weights travel inside a copy only": "分片權重的完整份數，權重只在同一份之內傳輸",
    "how data parallel holds weights: gathered for each use (full), once a step (step), frozen ones whole (replicated)": "資料平行持有權重的方式：每次使用時收集（full）、每步一次（step）、凍結的權重完整保存（replicated）",
    "order of forward and backward passes in a pipeline: 1f1b, or interleaved": "管線中前向與反向的順序：1f1b 或 interleaved",
    "longest sample in tokens; a lower one saves memory": "單一樣本的 token 上限；調低可省記憶體",
    "of a longer sample: refuse the data, cut_input at its end, or drop it; always listed": "樣本更長時：refuse 拒絕資料、cut_input 截掉輸入結尾、drop 捨棄；一律列出",
    "text with {input} and {output} instead of the chat template, for base models or a format of your own; \\n is a new line": "含 {input} 與 {output} 的文字，用來取代 chat template；用於 base 模型或自訂格式；\\n 代表換行",
    "the tokenizer's chat template": "tokenizer 的 chat template",
    "none: all weights; lora: low-rank adapters, which fit on a smaller GPU": "none：全部權重；lora：低秩 adapter，較小的 GPU 也放得下",
    "rank of the adapters: more can learn more and costs more": "adapter 的 rank：越大能學的越多，成本也越高",
    "linear layers that get adapters, comma-separated": "要加上 adapter 的線性層，以逗號分隔",
    "peak learning rate: the first one to try when the loss falls too slowly or jumps": "學習率的最高值：loss 降得太慢或忽高忽低時，先調它",
    "5e-6, with LoRA 1e-4": "5e-6，LoRA 為 1e-4",
    "steps of linear warm-up; AdamW's first steps have little to go by": "線性 warm-up 的步數；AdamW 最初幾步的統計還不可靠",
    "a tenth of the steps, at most 50": "總步數的十分之一，最多 50",
    "decay of weight matrices; norms are never decayed": "權重矩陣的 weight decay；norm 一律不套用",
    "AdamW's beta 1: how long the mean of the gradients remembers": "AdamW 的 beta 1：梯度平均記憶多久",
    "AdamW's beta 2: how long the mean of their squares remembers": "AdamW 的 beta 2：梯度平方的平均記憶多久",
    "AdamW's epsilon: keeps the division of the two from exploding": "AdamW 的 epsilon：避免兩者相除時爆掉",
    "largest global gradient norm, against single bad steps; 0 switches clipping off": "全域梯度範數的上限，防止單一壞步；0 表示不裁剪",
    "computed again in the backward pass, less memory, slower: selective: what is cheap or wide; full: all; auto: the least that fits": "反向傳播時重新計算，較省記憶體、較慢：selective：便宜或寬的部分；full：全部；auto：放得下的前提下算得最少",
    "fused blocks, or compiled ones for LoRA that is not on all seven layers, of a rank above 256 or with -T; auto: with CUDA only; off when a compiler is missing": "融合的區塊；LoRA 不在全部七種線性層上、rank 大於 256、或 LoRA 加 -T 時，用編譯的區塊；auto：只在有 CUDA 時；缺編譯器時用 off",
    "tokens of a packed sequence at most": "打包序列最多的 token 數",
    "tokens of a packed sequence at most. Of short samples, longer ones are faster; by default they hold as many times --seq_length as the memory plan has room for, up to 24 576 tokens: on GPUs of known memory, where samples have 4096 tokens or less on average, nothing has to be recomputed and there is no pipeline. The gradient is the same, up to rounding": "每個打包列最多的 token 數。樣本短時，列越長越快；省略時，若 GPU 記憶體大小已知、樣本平均不超過 4096 個 token、不必重新計算，也沒有 pipeline，會取記憶體規劃放得下的 --seq_length 倍數，最多 24 576 個 token。梯度相同，只差捨入誤差",
    "micro_batch_size × seq_length, or more": "micro_batch_size × seq_length，或更多",
    "products of linear layers in fp8 (with LoRA those with frozen weights, and, without --least_memory, the gradient through the head; logits and loss stay as they are), faster on Hopper and Ada, a little less exact; with LoRA on any number of GPUs, without it on one": "線性層的矩陣乘法用 fp8（LoRA：凍結權重的乘法，以及（沒有 --least_memory 時）通過輸出層的梯度；logits 與 loss 不變），在 Hopper 與 Ada 上較快，精確度略降；搭配 LoRA 時 GPU 數不限，全參數時限一張",
    "LoRA on all seven layers in the least GPU memory (8B, rows of 8192 tokens: about 16 GiB, with --fp8 9 GiB): blocks are computed again in pieces of a row, and what they keep waits in host memory (4 GiB for such a row, and the embedding)": "以最少的 GPU 記憶體對七種線性層做 LoRA（8B、每列 8192 個 token：約 16 GiB，加上 --fp8 約 9 GiB）：block 依列的片段重新計算，需要保留的放在主機記憶體（這樣的一列 4 GiB，另加 embedding）",
    "full fine-tuning: fp32: weights, gradients and moments in float32, 16 bytes a parameter; bf16: exact float32 weights in two halves, the rest in bfloat16, 10 bytes; 8bit: moments in 8 bits, 8 bytes; auto: bf16 on GPUs, 8bit where that does not fit, fp32 on CPUs": "全參數微調：fp32：權重、梯度與動量都用 float32，每個參數 16 位元組；bf16：精確的 float32 權重分成兩半，其餘用 bfloat16，10 位元組；8bit：動量用 8 位元，8 位元組；auto：GPU 上用 bf16，放不下用 8bit，CPU 上用 fp32",
    "steps between validations": "每幾步驗證一次",
    "a tenth of the run": "總步數的十分之一",
    "steps between checkpoints; 0: none, and nothing can be resumed": "每幾步存一次檢查點；0 表示不存，中斷後也就無法接續",
    "after each validation": "每次驗證之後",
    "newest checkpoints to keep, besides the one with the lowest validation loss; each is three times the trained weights in float32": "除了驗證 loss 最低的之外，保留幾個最新的檢查點；每個的大小是訓練權重（float32）的三倍",
    "answers generated before and after training; 0: none": "訓練前後各生成幾個回答；0 表示不生成",
    "start a new experiment from the weights of this checkpoint or PEFT adapter, e.g. experiments/NAME/checkpoints/step=000100; its rank, alpha and targets then hold": "以這個檢查點或 PEFT adapter 的權重開始新的實驗，例如 experiments/名稱/checkpoints/step=000100；沒有給的 rank、alpha 與 targets 以 adapter 的為準",
    "also log to this Weights & Biases project": "同時記錄到此 Weights & Biases 專案",
    "also log to this MLflow server": "同時記錄到此 MLflow 伺服器",
    "upload data report, results and exported model to these trackers at the end": "結束時也把資料報告、結果與匯出的模型上傳到這些紀錄服務",
    "steps that are profiled, from the fourth one on: work and messages of each rank in profile/, and a trace": "要剖析的步數，從第四步開始：每個 rank 的計算與通訊時間記在 profile/，另有一份追蹤檔",
    "language of the messages: en or zh-TW": "訊息的語言：en 或 zh-TW",
    "the locale's": "依系統語系",
    "must be {least:g} or more": "必須大於等於 {least:g}",
    "must be greater than {limit:g}": "必須大於 {limit:g}",
    "must be at least {least:g} and less than {limit:g}": "必須大於等於 {least:g} 且小於 {limit:g}",
    "--{name} has no effect without {needed}": "沒有 {needed} 時，--{name} 沒有作用",
    "Flags": "參數",
    "Flag": "參數",
    "Default": "預設值",
    "What it is for": "用途",
    "; only with {needed}": "；僅搭配 {needed}",
    "Of `finetune train`, which is `python finetune.py`. `--help` shows the same groups in short.": "`finetune train`（即 `python finetune.py`）的參數。`--help` 以相同的分組簡短列出。",
    "This page is written from the code; `make fix` writes it anew.": "本頁由程式碼產生；`make fix` 會重新產生。",
    "required": "必填",
    "off": "關",
    # finetuning/config/settings.py
    "{source}: unknown setting '{name}'; known settings: {known}": "{source}：沒有「{name}」這個設定；可用的設定：{known}",
    "--{name} is required": "必須給 --{name}",
    "{source}: {name} is {value}, but must be {type}": "{source}：{name} 是 {value}，但必須是{type}",
    "{source}: {name} is {value}, but must be one of {choices}": "{source}：{name} 是 {value}，但必須是 {choices} 其中之一",
    "no {name}": "沒有 {name}",
    "--config {path}: there is no such file": "--config {path}：沒有這個檔案",
    "--config {path}: must hold 'name: value' lines named like the flags": (
        "--config {path}：每行必須是 name: value，name 與指令列參數同名"
    ),
    "command line": "指令列",
    "a whole number": "整數",
    "a number": "數字",
    "true or false": "true 或 false",
    "text": "文字",
    "a list of names": "名稱清單",
    # finetuning/data/tokens/configure.py
    "{path}: holds no samples": "{path}：沒有任何樣本",
    "--dataset_path {path}: there is no such folder": "--dataset_path {path}：沒有這個資料夾",
    "--dataset_path {path}: needs training.jsonl (and validation.jsonl, test.jsonl), or exactly one other .jsonl "
    "file to be split 98/1/1; found {found}": (
        "--dataset_path {path}：需要 training.jsonl（以及 validation.jsonl、test.jsonl），或恰好一個其他 .jsonl 檔，"
        "將以 98/1/1 切分；目前找到 {found}"
    ),
    "{path}: {count} sample{count:s} cannot be split into training, validation and test; 3 are needed": (
        "{path}：{count} 個樣本不夠切成訓練、驗證與測試，至少要 3 個"
    ),
    "{file}: and {rest} more line{rest:s} like these": "{file}：另外還有 {rest} 行有類似問題",
    # finetuning/data/jsonl.py
    "not UTF-8 (byte {position}); save the file as UTF-8": "不是 UTF-8（第 {position} 個位元組）；請以 UTF-8 存檔",
    "field '{name}' is missing; found {found}": "缺少欄位 '{name}'；目前有 {found}",
    "field '{name}' must be text, but is {value}": "欄位 '{name}' 必須是文字，但現在是 {value}",
    # finetuning/data/prompts/prompt_format.py
    "{file}: cannot read the tokenizer: {error}": "{file}：無法讀取 tokenizer：{error}",
    "{path}: the tokenizer has no chat template (a base model?); use an -Instruct model, or give "
    "--prompt_template, for example '{example}'": (
        "{path}：tokenizer 沒有 chat template（是 base 模型嗎？）；請改用 -Instruct 模型，或給 --prompt_template，"
        "例如 '{example}'"
    ),
    "{path}: the chat template does not put the answer right after the prompt; give --prompt_template": (
        "{path}：chat template 沒有把回答緊接在 prompt 之後；請給 --prompt_template"
    ),
    "--system_prompt has no effect with --prompt_template; write it into the template": (
        "使用 --prompt_template 時 --system_prompt 不起作用；請直接寫進模板"
    ),
    "--prompt_template {template!r}: must contain {{input}} once and, after it, {{output}} once": (
        "--prompt_template {template!r}：必須有一個 {{input}}，且其後有一個 {{output}}"
    ),
    "{file}: not valid JSON: {error}": "{file}：不是有效的 JSON：{error}",
    "the prompt must begin with exactly one {token}; it begins with {text!r}": (
        "prompt 開頭必須恰好有一個 {token}；現在的開頭是 {text!r}"
    ),
    "answers would end with {text!r}, which holds no end token, so the model would never learn to stop": (
        "回答會以 {text!r} 結尾，其中沒有結束 token，模型永遠學不會停下來"
    ),
    # finetuning/config/llama.py
    "--hf_model_id {path}: there is no such folder": "--hf_model_id {path}：沒有這個資料夾",
    "--hf_model_id {path}: holds no config.json, so it is not a model folder in Hugging Face format": (
        "--hf_model_id {path}：裡面沒有 config.json，不是 Hugging Face 格式的模型資料夾"
    ),
    "{file}: model_type is {found!r}; only the Llama family (model_type 'llama') is supported": (
        "{file}：model_type 是 {found!r}；只支援 Llama 家族（model_type 'llama'）"
    ),
    "{file}: {name} is {value!r}, but must be a positive whole number": "{file}：{name} 是 {value!r}，但必須是正整數",
    "{file}: {name} is {value!r}; only {supported!r} is supported": "{file}：{name} 是 {value!r}；只支援 {supported!r}",
    "{file}: RoPE type {value!r} is not supported; 'default' and 'llama3' are": (
        "{file}：不支援 RoPE 類型 {value!r}；支援 'default' 與 'llama3'"
    ),
    "{file}: RoPE is described in several places that do not agree ({said}); keep what it was trained with": (
        "{file}：多處描述了 RoPE，但說法不一致（{said}）；請只保留模型訓練時所用的設定"
    ),
    "nothing in the other": "另一處沒有",
    "{file}: the llama3 RoPE scaling needs positive numbers, and low_freq_factor below high_freq_factor": (
        "{file}：llama3 的 RoPE 縮放參數必須是正數，而且 low_freq_factor 要小於 high_freq_factor"
    ),
    "{file}: {key} says that the weights are quantized ({shown}); give the model that they were made from, "
    "with weights in {known}": ("{file}：{key} 顯示權重已經量化（{shown}）；請改給量化前的原始模型，其權重的 dtype 為 {known}"),
    "no method is named": "未寫明方法",
    "{file}: {name} is {value}, but must be {rule}": "{file}：{name} 是 {value}，但必須是{rule}",
    "a number between 0 and 1": "介於 0 與 1 之間的數字",
    "even, as RoPE rotates pairs": "偶數，因為 RoPE 是成對旋轉",
    "at most {most}": "不超過 {most} 的數",
    "{file}: the llama3 RoPE scaling has no {name}": "{file}：llama3 的 RoPE 縮放缺少 {name}",
    "{file}: {heads} attention heads must be a multiple of {key_value_heads} key/value heads and divide the hidden size "
    "{hidden}": (
        "{file}：{heads} 個 attention head 必須是 {key_value_heads} 個 key/value head 的倍數，且能整除 hidden size {hidden}"
    ),
    # finetuning/checkpoint
    "{folder}: {name} is {value!r}; only {supported!r} is supported": "{folder}：{name} 是 {value!r}；只支援 {supported!r}",
    "{folder}: holds no adapter {name}": "{folder}：沒有 adapter {name}",
    "nothing": "無",
    "{path}: weight file {missing} is missing (other weight files: {other}); weights must be in safetensors format": (
        "{path}：缺少權重檔 {missing}（其他權重檔：{other}）；權重必須是 safetensors 格式"
    ),
    "{file}: cannot read the weights: {error}": "{file}：無法讀取權重：{error}",
    "{name} should be {wanted}, found {found}": "{name} 應為 {wanted}，實際為 {found}",
    "{path}: holds a whole model and an adapter ({adapter}); move one of them into a folder of its own": (
        "{path}：裡面有完整的模型，也有 adapter（{adapter}）；請把其中一個移到自己的資料夾"
    ),
    "{path}: holds two models, {single} and the {count} files that {index} names; transformers reads the first. "
    "Move the one that is not meant away": (
        "{path}：裡面有兩個模型，{single} 以及 {index} 列出的 {count} 個檔案；transformers 會讀前者。請移走不要的那一個"
    ),
    "{file}: names {name}, which is no safetensors file": "{file}：列出了 {name}，但它不是 safetensors 檔案",
    "{path}: {name} is in {first} and in {second}; move the file that is not meant away": (
        "{path}：{first} 與 {second} 都有 {name}；請移走不要的檔案"
    ),
    "a header of {size} MiB": "檔頭有 {size} MiB",
    "{file}: {name} is stored as {dtype} ({count} of {total} weights are no plain numbers). Quantized weights are not read; "
    "give the model that they were made from, with weights in {known}": (
        "{file}：{name} 以 {dtype} 儲存（{total} 個權重中有 {count} 個不是一般數值）。無法讀取量化後的權重；"
        "請改給量化前的原始模型，其權重的 dtype 為 {known}"
    ),
    "{layers} layer{layers:s}, and {count} tensors": "設定為 {layers} 層，檔案裡卻只有 {count} 個張量",
    "{path}: holds weights that a Llama does not have: {names}. What they do would be lost; give the model that was meant, "
    "or save it without them": (
        "{path}：含有 Llama 所沒有的權重：{names}。它們的作用會遺失；請改給正確的模型，或另存成不含這些權重的模型"
    ),
    "{file}: says that {name} is in {named}, but it is in {found}; index and weight files are not of one save": (
        "{file}：記載 {name} 在 {named}，實際上卻在 {found}；索引與權重檔並非同一次儲存的結果"
    ),
    "{path}: config.json says tie_word_embeddings, but {head} and {table} are both there and differ. Set "
    "tie_word_embeddings to false, or remove the one that is not meant": (
        "{path}：config.json 設了 tie_word_embeddings，但 {head} 與 {table} 都存在而且內容不同。"
        "請把 tie_word_embeddings 設為 false，或移除不要的那一個"
    ),
    "not usable": "無法使用",
    "{file}: {name} {pattern!r} is not understood; name the layers": (
        "{file}：無法理解 {name} {pattern!r}；請直接寫出層的名稱"
    ),
    "a finite number": "有限的數字",
    "between {least} and {most}": "介於 {least} 與 {most} 之間",
    "{folder}: {settings} names the layers {named}, but {weights} holds {stored}": (
        "{folder}：{settings} 列出的層是 {named}，但 {weights} 裡是 {stored}"
    ),
    "{folder}: holds no {file}": "{folder}：裡面沒有 {file}",
    "{folder}: holds what this run would not use: {names}": "{folder}：含有這次訓練用不到的內容：{names}",
    "{file}: {heads} attention heads of {size} do not fit {groups} key/value heads and RoPE": (
        "{file}：{heads} 個大小為 {size} 的注意力頭，與 {groups} 個 key/value 頭或 RoPE 不相容"
    ),
    "{file}: is a link to {target}, outside of the model folder, and would be copied from there; give the folder that holds "
    "the files themselves": (
        "{file}：是指向模型資料夾之外 {target} 的連結，輸出時會複製該處的內容；請改給實際存放這些檔案的資料夾"
    ),
    "{path}: the weights do not fit config.json: {shown}": "{path}：權重與 config.json 不符：{shown}",
    "{path}: not a complete checkpoint (no readable {file})": "{path}：不是完整的檢查點（沒有可讀的 {file}）",
    "the tokens of before were damaged ({damage}); they were built anew": "先前的 token 已損壞（{damage}）；已重新建立",
    "{folder}: the tokens are damaged ({reason}). Run the same command again: they are built anew": (
        "{folder}：token 已損壞（{reason}）。請再執行同一個指令：會重新建立"
    ),
    "its files do not fit together": "其中的檔案彼此不符",
    "step {step}: none of its {count} samples has a trainable token; the tokens are damaged. Run the same command again: "
    "they are checked, and built anew": (
        "第 {step} 步：它的 {count} 個樣本都沒有可訓練的 token；token 已損壞。請再執行同一個指令：會檢查並重新建立"
    ),
    "step {step}: {found} tokens of a packed sequence are trainable, and {expected} were when it was made; the tokens are "
    "damaged. Run the same command again: they are checked, and built anew": (
        "第 {step} 步：一個打包序列中有 {found} 個可訓練的 token，建立時卻有 {expected} 個；token 已損壞。"
        "請再執行同一個指令：會檢查並重新建立"
    ),
    "{file} is missing": "缺少 {file}",
    "{file} has {found} bytes instead of {wanted}": "{file} 有 {found} 個位元組，應為 {wanted}",
    "{file} has changed": "{file} 的內容變了",
    "{file}: holds half of a character (a lone surrogate)": "{file}：含有半個字元（單獨的 surrogate）",
    "not a complete checkpoint: {reason}": "不是完整的檢查點：{reason}",
    "{file}: {key} has no time zone": "{file}：{key} 沒有時區",
    "{file}: names two steps, {one} and {other}": "{file}：寫了兩個不同的步數，{one} 與 {other}",
    "{path}: says that it is of step {step}": "{path}：內容寫的卻是第 {step} 步",
    "{path}: holds no position in the data, so it cannot be gone on from": "{path}：沒有資料讀到哪裡的紀錄，因此無法從它繼續",
    "passed over: {damage}; it is kept as {name}": "略過：{damage}；保留為 {name}",
    "{damage}; no sound checkpoint is before it. To begin anew, give another --experiment name": (
        "{damage}；在它之前沒有完好的檢查點。若要重新開始，請給另一個 --experiment 名稱"
    ),
    "{path}: {part}": "{path}：{part}",
    "{file} is damaged at byte {offset}": "{file} 從第 {offset} 個位元組起的部分已損壞",
    "{path}: cannot be read or written: {error}": "{path}：無法讀取或寫入：{error}",
    "{folder}: holds no {name}": "{folder}：沒有 {name}",
    "{folder}: {name} is {found}, and this run needs {wanted}": "{folder}：{name} 是 {found}，而這次執行需要 {wanted}",
    "{folder}: {name} is declared larger than the file that holds it": "{folder}：{name} 宣稱的大小超過存放它的檔案",
    "{path}: not a complete checkpoint ({file} is missing or has the wrong size)": (
        "{path}：不是完整的檢查點（{file} 不存在或大小不對）"
    ),
    # finetuning/runtime/failures.py, finetuning/runtime/status.py
    "lower --row_length or --seq_length (tokens of a packed row, and of the longest sample)": (
        "調低 --row_length 或 --seq_length（打包列的 token 數，以及最長樣本的 token 數）"
    ),
    "more GPUs (weights and optimizer are spread over them)": "更多 GPU（權重與最佳化器狀態會分散到各 GPU）",
    "Out of memory. What helps, in this order: {advice}": "記憶體不足。依序可以試：{advice}",
    "{file}: cut short: it has {size} bytes, and {name} ends at {end}; copy or download it again": (
        "{file}：檔案不完整：只有 {size} 位元組，而 {name} 到第 {end} 位元組才結束；請重新複製或下載"
    ),
    "{problem}; download it again": "{problem}；請重新下載",
    "{problem}; remove the file, it is written anew": "{problem}；請刪除該檔，程式會重新寫入",
    "it has left no readable error ({reason})": "沒有留下可讀的錯誤（{reason}）",
    "{file}: a link to nowhere": "{file}：連結指向不存在的地方",
    "experiment {name} belongs to user {owner}, who alone can end it": "實驗 {name} 屬於使用者 {owner}，只有該使用者能結束它",
    # finetuning/files
    "{file}: its aliases stand for more than {most} values; write them out": "{file}：別名展開後超過 {most} 個值；請直接寫出來",
    "{file}: nested too deeply": "{file}：巢狀層數太多",
    "{file}: not a regular file": "{file}：不是一般檔案",
    "{file}: cannot be read: {reason}": "{file}：無法讀取：{reason}",
    "{file}: larger than {most} MiB": "{file}：超過 {most} MiB",
    "{file}: not UTF-8 (byte {position})": "{file}：不是 UTF-8（第 {position} 個位元組）",
    "{file}: {key} is missing": "{file}：缺少 {key}",
    "{file}: {key} is {found}, but must be {wanted}": "{file}：{key} 是{found}，但必須是{wanted}",
    "{file}: holds {found}, but must hold {wanted}": "{file}：內容是{found}，但必須是{wanted}",
    "{file}: {key}: {problem}": "{file}：{key}：{problem}",
    "the whole": "整個檔案",
    " or ": " 或 ",
    "a list": "清單",
    "a mapping": "物件",
    "{folder}: no room left ({reason}; {free:.1f} GiB are free). "
    "Make room there, then run the same command again; nothing that was complete is lost": (
        "{folder}：空間不足（{reason}；剩餘 {free:.1f} GiB）。請騰出空間後再執行同一個指令；已完成的都不會遺失"
    ),
    "{folder}: {needed:.2f} GiB are needed, and {free:.2f} GiB are free. Make room there, then run the same command again; "
    "nothing that was complete is lost": (
        "{folder}：需要 {needed:.2f} GiB，剩餘 {free:.2f} GiB。請騰出空間後再執行同一個指令；已完成的都不會遺失"
    ),
    "{folder}: the experiment's folder was removed, or cannot be reached any more, while it ran": (
        "{folder}：實驗的資料夾在執行中被移除，或已無法存取"
    ),
    "a file that it had mapped into memory became shorter while it was read (tokens, Megatron data or weights), or its disk "
    "failed (SIGBUS). Run the same command again: the tokens are checked, and built anew": (
        "它映射到記憶體的檔案在讀取時變短了（token、Megatron 資料或權重），或磁碟故障（SIGBUS）。"
        "請再執行同一個指令：token 會檢查並重新建立"
    ),
    # finetuning/config/rules.py
    "must be 1 or more": "必須大於等於 1",
    "must be 0 or more": "必須大於等於 0",
    "--row_length {given}: a row must hold the longest sample, --seq_length {longest}; give {longest} or more, or "
    "leave it out": "--row_length {given}：打包列必須放得下最長樣本（--seq_length {longest}）；請給 {longest} 以上，或省略",
    "{file}: not the settings of a run: {error}": "{file}：不是一次執行的設定：{error}",
    "--{name} {value}: must be finite": "--{name} {value}：必須是有限的數",
    "--{name} {value}: {rule}": "--{name} {value}：{rule}",
    "--{name} {value}: must be {limit} or less": "--{name} {value}：必須小於等於 {limit}",
    "--experiment {name!r}: it names a folder; use letters, digits, '_', '-' and '.', no '.' or '-' first": (
        "--experiment {name!r}：這是資料夾名稱；請用文字、數字、'_'、'-' 與 '.'，且不以 '.' 或 '-' 開頭"
    ),
    "--lora_targets {given}: unknown {unknown}; choose from {known}": (
        "--lora_targets {given}：無法辨識的名稱：{unknown}；可選：{known}"
    ),
    "--lora_targets {given}: a name is given twice": "--lora_targets {given}：有名稱重複",
    "--min_lr {minimum} is above the peak learning rate {peak}": "--min_lr {minimum} 高於學習率的最高值 {peak}",
    "--{flag} needs a package that is not installed: pip install {package}": (
        "--{flag} 需要的套件尚未安裝：pip install {package}"
    ),
    "--tensor_model_parallel_size {degree}: must divide {heads} attention heads and {key_value_heads} key/value "
    "heads; with {world} GPU{world:s} use {choices}": (
        "--tensor_model_parallel_size {degree}：必須能整除 {heads} 個 attention head 與 {key_value_heads} 個 key/value head；"
        "{world} 個 GPU 可用 {choices}"
    ),
    "--lora_rank {rank}: must be at most the model's hidden size, {hidden}": (
        "--lora_rank {rank}：不能超過模型的 hidden size，{hidden}"
    ),
    "{nodes} x {gpus} = {world} GPU{world:s} cannot be divided by tensor {tensor} x pipeline {pipeline} x context {context} "
    "= {degree}; the product must be one of {choices}": (
        "{nodes} × {gpus} = {world} 個 GPU 無法被張量 {tensor} × 管線 {pipeline} × 上下文 {context} = {degree} 整除；"
        "乘積必須是 {choices} 其中之一"
    ),
    "--global_batch_size {batch}: must be a multiple of micro_batch_size {micro} x data parallel {data} = {unit}; "
    "nearest: {nearest}": (
        "--global_batch_size {batch}：必須是 micro_batch_size {micro} × 資料平行 {data} = {unit} 的倍數；最接近的是 {nearest}"
    ),
    (
        "--num_gpus {asked}: without a GPU it counts CPU processes, and this machine has {cores} "
        "core{cores:s}; give {limit} or less"
    ): ("--num_gpus {asked}：沒有 GPU 時這是 CPU 行程數，而本機有 {cores} 個核心；請給 {limit} 以下"),
    "--num_gpus {asked}: this machine has {found}; give --num_gpus {found} (and a --global_batch_size that is a "
    "multiple of micro_batch_size x {found})": (
        "--num_gpus {asked}：本機只有 {found} 個；請給 --num_gpus {found}"
        "（--global_batch_size 則須為 micro_batch_size × {found} 的倍數）"
    ),
    "--restore_config {path}: there is no such folder": "--restore_config {path}：沒有這個資料夾",
    # finetuning/cli/train.py
    "cannot write to {folder}: {reason}": "無法寫入 {folder}：{reason}",
    "experiment {name} is running already (see {folder}); wait for it, or give another --experiment name": (
        "實驗 {name} 正在執行（見 {folder}）；請等它結束，或換一個 --experiment 名稱"
    ),
    "starting {count} process{count:es} …": "啟動 {count} 個行程 …",
    "stopped; run the same command to go on": "已停止；執行相同的指令即可接續",
    "Rank {rank} failed: {reason}": "rank {rank} 失敗：{reason}",
    "a worker process was killed, or could not start (out of memory? see the last lines of {log})": (
        "有工作行程被終止，或無法啟動（記憶體不足？請看 {log} 的最後幾行）"
    ),
    "log: {log}": "紀錄檔：{log}",
    "experiment {name} has finished: {done} of {max_steps} step{max_steps:s}; its result is in {export}. To train on, give a "
    "larger --max_steps; to train again, another --experiment name.": (
        "實驗 {name} 已經完成：{done}／{max_steps} 步；結果在 {export}。要繼續訓練，請給更大的 --max_steps；"
        "要重新訓練，請換一個 --experiment 名稱。"
    ),
    # finetuning/launch/hub.py
    "--hf_model_id {path}: is a file; give the folder that holds config.json": (
        "--hf_model_id {path}：這是檔案；請給內有 config.json 的資料夾"
    ),
    "--hf_model_id {path}: give the model's name instead of its address: {name}": (
        "--hf_model_id {path}：請給模型名稱而不是網址：{name}"
    ),
    "the Hugging Face token has blanks or letters that no token has; copy it again from "
    "https://huggingface.co/settings/tokens": (
        "Hugging Face token 含有空白或不會出現在 token 裡的字元；請到 https://huggingface.co/settings/tokens 重新複製"
    ),
    "--hf_model_id {model}: not a model name of the hub: {error}": "--hf_model_id {model}：不是 hub 上的模型名稱：{error}",
    "--hf_model_id {model}: neither a local folder nor a model on the hub (or a private one: {ways})": (
        "--hf_model_id {model}：既不是本機資料夾，hub 上也沒有這個模型（或者它是私有的：{ways}）"
    ),
    "--hf_model_id {model}: the hub does not know this token (expired, or not copied whole?); see "
    "https://huggingface.co/settings/tokens": (
        "--hf_model_id {model}：hub 不認得這個 token（已過期，或沒有複製完整？）；請看 https://huggingface.co/settings/tokens"
    ),
    "--hf_model_id {model}: the hub refused it: {reason}": "--hf_model_id {model}：hub 拒絕了請求：{reason}",
    "--hf_model_id {model}: no local folder of this name, and the hub cannot be reached ({reason}); check the network, or "
    "give a local folder": (
        "--hf_model_id {model}：沒有這個名稱的本機資料夾，也連不上 hub（{reason}）；請檢查網路，或給本機資料夾"
    ),
    "--hf_model_id {model}: the token has no access to this model; ask for it at https://huggingface.co/{model} "
    "with the account the token belongs to. A local folder needs no token.": (
        "--hf_model_id {model}：這個 token 沒有此模型的存取權；請以 token 所屬的帳號到 https://huggingface.co/{model} 申請。"
        "使用本機資料夾則不需要 token。"
    ),
    "--hf_model_id {model}: this model needs a Hugging Face token; ask for access at https://huggingface.co/{model}, "
    "then {ways}. A local folder needs no token.": (
        "--hf_model_id {model}：這個模型需要 Hugging Face token；請到 https://huggingface.co/{model} 申請存取權，再{ways}。"
        "使用本機資料夾則不需要 token。"
    ),
    "give it by `hf auth login`, as the environment variable HF_TOKEN, or by --hf_token": (
        "以 `hf auth login`、環境變數 HF_TOKEN 或 --hf_token 提供 token"
    ),
    # finetuning/launch/prepare.py
    "--warmup_steps {warmup}: must be less than the {max_steps} step{max_steps:s} of the run, or the learning rate "
    "never reaches "
    "its peak": ("--warmup_steps {warmup}：必須小於總步數 {max_steps}，否則學習率永遠到不了最高值"),
    "--seq_length {given}: the model was made for at most {limit} positions": (
        "--seq_length {given}：這個模型最多只支援 {limit} 個位置"
    ),
    "{file}: cannot be read or written: {reason}": "{file}：無法讀取或寫入：{reason}",
    "no CUDA GPU here: --num_gpus {count} means {count} CPU process{count:es}, in float32": (
        "本機沒有 CUDA GPU：--num_gpus {count} 表示 {count} 個 CPU 行程，以 float32 計算"
    ),
    "one raw file, split 98/1/1: {sizes}; the same samples each time": "單一原始檔，以 98/1/1 切分：{sizes}；每次切分結果相同",
    "no {name}.jsonl: there will be no {name} loss": "沒有 {name}.jsonl：不會有 {name} loss",
    "--global_batch_size {batch} is more than the {samples} training samples: one step sees some of them several "
    "times; a smaller batch gives more steps per epoch": (
        "--global_batch_size {batch} 比訓練樣本數 {samples} 還大：同一步會重複看到部分樣本；"
        "較小的 batch 可讓每個 epoch 有更多步"
    ),
    "--save_every_n_steps 0: nothing can be resumed": "--save_every_n_steps 0：中斷後無法接續",
    # finetuning/launch/resume.py
    "ignored: {what}": "略過：{what}",
    "experiment {name} has done {done} step{done:s} already; give --max_steps {done} or more, or another --experiment name": (
        "實驗 {name} 已經訓練了 {done} 步；請給 --max_steps {done} 以上，或換一個 --experiment 名稱"
    ),
    "{name}: was {before}, is now {now}": "{name}：原為 {before}，現為 {now}",
    "these cannot change inside one experiment; give another --experiment name": (
        "同一個實驗中不能改變這些設定；請換一個 --experiment 名稱"
    ),
    "give another --experiment name, or --accept_changes to go on with the new ones": (
        "請換一個 --experiment 名稱，或以 --accept_changes 用新的設定繼續"
    ),
    "experiment {name} was started with other settings:\n      {lines}\n    {advice}": (
        "實驗 {name} 當初的設定不同：\n      {lines}\n    {advice}"
    ),
    "starts from the adapter {path}": "從 adapter {path} 開始",
    "--restore_config {path}: this is a whole model in Hugging Face format; give it as --hf_model_id": (
        "--restore_config {path}：這是 Hugging Face 格式的完整模型；請以 --hf_model_id 指定"
    ),
    "--restore_config {path}: neither a complete checkpoint, nor a folder with one, nor an adapter in PEFT format": (
        "--restore_config {path}：不是完整的檢查點，裡面也沒有完整的檢查點，也不是 PEFT 格式的 adapter"
    ),
    "--restore_config {path}: {name} of the checkpoint is {before}, of this run {now}": (
        "--restore_config {path}：檢查點的 {name} 是 {before}，這次是 {now}"
    ),
    "starts from the weights of {model}": "從 {model} 的權重開始",
    "--restore_config {path}: a LoRA adapter can only be the start of a run with --peft lora": (
        "--restore_config {path}：LoRA adapter 只能作為 --peft lora 的起點"
    ),
    "--restore_config {path}: {file} is missing": "--restore_config {path}：缺少 {file}",
    "resuming {name} at step {step} of {max_steps} (saved {age} ago)": (
        "從第 {step}／{max_steps} 步接續 {name}（{age}前存檔）"
    ),
    "saved as {before}, goes on as {now}: the losses agree to rounding, not to the last bit": (
        "存檔時是 {before}，現在是 {now}：loss 在捨入誤差內一致，但不是逐位元相同"
    ),
    "the schedule changes from {planned} to {max_steps} step{max_steps:s}: the learning rate follows the new cosine, the order "
    "of the samples stays": "排程由 {planned} 步改為 {max_steps} 步：學習率依新的餘弦曲線，樣本順序不變",
    "--restore_config is not used: the experiment's own checkpoint comes first": (
        "未使用 --restore_config：以實驗自己的檢查點優先"
    ),
    "{file}: ends in the middle of {name}; copy it again": "{file}：在 {name} 的中間就結束了；請重新複製",
    "{file}: cannot be decompressed into {folder} ({free:.1f} GB free): {error}": (
        "{file}：無法解壓縮到 {folder}（剩餘 {free:.1f} GB）：{error}"
    ),
    "{file}: has a file that leads outside it ({name})": "{file}：裡面有指向外部的檔案（{name}）",
    "{file}: {name} is no plain file": "{file}：{name} 不是一般檔案",
    "{file}: grows from {size} to more than {largest} bytes, which weights do not": (
        "{file}：從 {size} 位元組膨脹到超過 {largest} 位元組，權重不會這樣"
    ),
    "{path}: there is no such file or folder": "{path}：沒有這個檔案或資料夾",
    "{path}: holds no {name}, so it is not a GPT model of Megatron; found {found}": (
        "{path}：沒有 {name}，所以不是 Megatron 的 GPT 模型；找到 {found}"
    ),
    "{path}: holds LoRA adapters only ({name}, …); merge them with NeMo's or Megatron-Bridge's own script, or "
    "give the checkpoint of the base model": (
        "{path}：只有 LoRA adapter（{name}、…）；請用 NeMo 或 Megatron-Bridge 自己的程式合併，或指定基礎模型的檢查點"
    ),
    "{path}: the weights do not fit the model: {shown}": "{path}：權重與模型不符：{shown}",
    "{path}: holds weights that a Llama does not have: {names}": "{path}：含有 Llama 沒有的權重：{names}",
    "{file}: {name} is {value!r}; a Llama has {supported!r}": "{file}：{name} 是 {value!r}；Llama 應為 {supported!r}",
    "{name} is {stored} in the checkpoint and {given} in config.json": (
        "{name} 在檢查點中是 {stored}，在 config.json 中是 {given}"
    ),
    "{file}: holds no settings": "{file}：沒有設定",
    "{file}: not valid YAML: {error}": "{file}：不是有效的 YAML：{error}",
    "{file}: holds no settings of a model ({error!r})": "{file}：沒有模型的設定（{error!r}）",
    "{path}: no checkpoint of NeMo or Megatron (weights/ and context/, {metadata}, iter_…, or a .nemo file); found {names}": (
        "{path}：不是 NeMo 或 Megatron 的檢查點（weights/ 與 context/、{metadata}、iter_…，或 .nemo 檔）；找到 {names}"
    ),
    "{path}: holds no settings of its model ({names}); give the model's config.json, by --hf_model_id or --base": (
        "{path}：沒有模型的設定（{names}）；請以 --hf_model_id 或 --base 指定模型的 config.json"
    ),
    "settings of its model": "模型的設定",
    "tokenizer in Hugging Face format": "Hugging Face 格式的 tokenizer",
    "{path}: holds no {lacking}; give the model's folder or hub name as --hf_model_id or --base, for its "
    "configuration and tokenizer": (
        "{path}：沒有{lacking}；請以 --hf_model_id 或 --base 指定模型的資料夾或 hub 名稱，以取得設定與 tokenizer"
    ),
    "{path}: this is a model in Hugging Face format; give it as --hf_model_id": (
        "{path}：這是 Hugging Face 格式的模型；請以 --hf_model_id 指定"
    ),
    "{path}: this is a checkpoint of this command; give it as --restore_config": (
        "{path}：這是本指令的檢查點；請以 --restore_config 指定"
    ),
    (
        "{path}: holds {count} checkpoint{count:s}; give one of them: {names}"
    ): "{path}：有 {count} 個檢查點；請指定其中一個：{names}",
    "{file}: not an archive of NeMo (tar, or tar compressed by gzip)": (
        "{file}：不是 NeMo 的封存檔（tar，或以 gzip 壓縮的 tar）"
    ),
    "{file}: holds no model_config.yaml; found {found}": "{file}：沒有 model_config.yaml；找到 {found}",
    "{path}: the weights are stored as {backend!r}; only 'torch_dist' can be read. Megatron's tools convert it": (
        "{path}：權重以 {backend!r} 儲存；只能讀取 'torch_dist'。Megatron 的工具可以轉換"
    ),
    "{path}: names {folder} as its newest checkpoint, which is not there": "{path}：指出最新的檢查點是 {folder}，但它不在",
    "{file}: holds {value!r} instead of a number": "{file}：內容是 {value!r}，不是數字",
    "{file}: holds no model_weights.ckpt; found {found}": "{file}：沒有 model_weights.ckpt；找到 {found}",
    "{file}: was saved in {count} parts by model parallelism ({names}, …); merge them with NeMo's own script": (
        "{file}：因模型平行而存成 {count} 份（{names}、…）；請用 NeMo 自己的程式合併"
    ),
    "{file}: says nothing about the format": "{file}：沒有說明格式",
    "{file}: wants to use {what}, which no checkpoint needs; it was not opened": (
        "{file}：想使用 {what}，檢查點用不到它；沒有開啟"
    ),
    "{folder}: holds no {file}, so it is no complete checkpoint": "{folder}：沒有 {file}，所以不是完整的檢查點",
    "{folder}: {name} is not complete; {count} of {total} numbers are there": (
        "{folder}：{name} 不完整；{total} 個數值中只有 {count} 個"
    ),
    "{folder}: {name} is stored in a way that cannot be read": "{folder}：{name} 的儲存方式無法讀取",
    "{folder}: names a file outside itself ({file})": "{folder}：指向外部的檔案（{file}）",
    "{file}: is missing, and holds a part of {name}": "{file}：不見了，裡面有 {name} 的一部分",
    "not a table of contents": "不是目錄",
    "{file}: cannot read {name}: {error}": "{file}：無法讀取 {name}：{error}",
    "{file}: cannot be read: {error}": "{file}：無法讀取：{error}",
    "--nemo_model {path}: there is no such file or folder": "--nemo_model {path}：沒有這個檔案或資料夾",
    "--to nemo writes whole models; give --merge to put the adapter into its base": (
        "--to nemo 寫入的是完整模型；請加上 --merge 把 adapter 合併進基礎模型"
    ),
    "model in NeMo 2's format: {path}": "NeMo 2 格式的模型：{path}",
    "path": "路徑",
    "weights": "權重",
    "optimizer": "最佳化器",
    "tokenizer": "tokenizer",
    ", scaled by {factor:g} beyond {length} position{length:s}": "，超過 {length} 個位置時縮放 {factor:g} 倍",
    "{parameters:,} parameters; tensors: {kinds}": "{parameters:,} 個參數；張量：{kinds}",
    "Llama, {layers} layer{layers:s}, hidden {hidden}, MLP {inner}, {heads} heads of {size} for {groups} key/value heads, "
    "vocabulary {vocabulary}, {head}": (
        "Llama，{layers} 層，隱藏維度 {hidden}，MLP {inner}，"
        "{heads} 個 {size} 維的頭對 {groups} 個 key/value 頭，詞彙 {vocabulary}，{head}"
    ),
    "saved with": "存檔時",
    "states are there": "有狀態",
    "no states": "沒有狀態",
    "base model": "基礎模型",
    "tied head": "共用輸出層",
    "untied head": "獨立輸出層",
    "what a file or folder with a model holds, whoever wrote it": "檔案或資料夾裡的模型有什麼，不論由誰寫成",
    "Hugging Face model id, or a local folder in its format (required without --nemo_model)": (
        "Hugging Face 模型 ID，或其格式的本機資料夾（沒有 --nemo_model 時必填）"
    ),
    "{count:.0f} minute{count:s}": "{count:.0f} 分鐘",
    "{count:.0f} hour{count:s}": "{count:.0f} 小時",
    "{count:.0f} day{count:s}": "{count:.0f} 天",
    # finetuning/cli/train_screens.py
    "all weights": "全部權重",
    "strategy": "策略",
    "--blocks fused: those with LoRA go without -T and with --sharding auto or replicated": (
        "--blocks fused：LoRA 的融合區塊不能與 -T 並用，且 --sharding 須為 auto 或 replicated"
    ),
    "{blocks} blocks": "{blocks} 區塊",
    ", products in fp8": "，乘積用 fp8",
    "sharding {sharding}": "分片 {sharding}",
    "recomputation {mode}": "重算 {mode}",
    "optimizer states {states}": "最佳化器狀態 {states}",
    "schedule {schedule}": "排程 {schedule}",
    "model": "模型",
    "{name} · Llama, {layers} layer{layers:s} · {total} parameters, {trained} trained ({method})": (
        "{name} · Llama，{layers} 層 · 參數 {total}，訓練其中 {trained}（{method}）"
    ),
    "data": "資料",
    (
        "{split}: {samples:,} sample{samples:s}, {tokens:,} token{tokens:s}, {answers:,} of them answers, "
        "longest {longest:,} · {file}"
    ): ("{split}：{samples:,} 個樣本，{tokens:,} 個 token（回答占 {answers:,}），最長 {longest:,} · {file}"),
    "example": "範例",
    "line {line} · trained in brackets: ": "第 {line} 行 · 括號內是訓練的部分：",
    "layout": "配置",
    "GPUs": "GPU",
    "CPU processes": "CPU 行程",
    "schedule": "排程",
    (
        "{steps} step{steps:s} = {epochs:.2f} epochs · learning rate {peak:g} after {warmup} warm-up "
        "step{warmup:s}, cosine to {low:g}"
    ): ("{steps} 步 = {epochs:.2f} 個 epoch · 學習率經 {warmup} 步 warm-up 到 {peak:g}，再以餘弦降到 {low:g}"),
    "packing": "打包",
    "remove tokens that no experiment needs any more": "移除沒有實驗再需要的 token",
    "newest ones without an experiment that stay all the same": "沒有實驗使用、但仍保留的最新幾份",
    "only say what would be removed": "只說會移除什麼",
    "{folder}  {size:.1f} MiB": "{folder}  {size:.1f} MiB",
    "{count} folder{count:s} of tokens would be removed, {size:.1f} MiB": "會移除 {count} 個 token 資料夾，{size:.1f} MiB",
    "{count} folder{count:s} of tokens removed, {size:.1f} MiB": "已移除 {count} 個 token 資料夾，{size:.1f} MiB",
    "{folder}: there are no tokens; is --experiments_dir right?": "{folder}：沒有 token；--experiments_dir 對嗎？",
    "{file}: cannot be read ({error}), so it is not known which tokens it needs; nothing is removed": (
        "{file}：無法讀取（{error}），不知道它需要哪些 token；什麼都沒有移除"
    ),
    "{fill:.1%} of the computed positions were real tokens · the slowest rank had {imbalance:.1%} more work than the mean, "
    "in the worst step {worst:.1%}": (
        "計算的位置有 {fill:.1%} 是真正的 token · 最慢的 rank 比平均多 {imbalance:.1%} 的工作，最差的一步多 {worst:.1%}"
    ),
    " · validation every {every}": " · 每 {every} 步驗證",
    " · checkpoint every {every}": " · 每 {every} 步存檢查點",
    "memory": "記憶體",
    "about {needed:.0f} GiB of each GPU's {there:.0f} GiB": "每個 GPU 的 {there:.0f} GiB 中約用 {needed:.0f} GiB",
    "folder": "資料夾",
    "start": "起點",
    "note": "注意",
    "losses": "loss",
    "training {first:.4f} → {last:.4f}": "訓練 {first:.4f} → {last:.4f}",
    "validation {before:.4f} → {after:.4f} (perplexity {before_perplexity:.1f} → {after_perplexity:.1f}; not trained on)": (
        "驗證 {before:.4f} → {after:.4f}（困惑度 {before_perplexity:.1f} → {after_perplexity:.1f}；未參與訓練的資料）"
    ),
    "test {loss:.4f} (perplexity {perplexity:.1f}, {samples} sample{samples:s})": (
        "測試 {loss:.4f}（困惑度 {perplexity:.1f}，{samples} 個樣本）"
    ),
    "question": "問題",
    "before": "訓練前",
    "after": "訓練後",
    "expected": "參考答案",
    "(nothing)": "（空白）",
    "result": "結果",
    "load it": "載入",
    "records": "紀錄",
    "next": "下一步",
    "train on: the same command with --max_steps {steps}": "繼續訓練：相同的指令加上 --max_steps {steps}",
    "curves: tensorboard --logdir {folder}": "看曲線：tensorboard --logdir {folder}",
    # finetuning/train.py and finetuning/training
    "asked to stop": "收到停止要求",
    "all steps done": "所有步數已完成",
    "test: loss {loss:.4f}, perplexity {perplexity:.2f} on {samples} sample{samples:s}": (
        "測試：loss {loss:.4f}，困惑度 {perplexity:.2f}，{samples} 個樣本"
    ),
    "stopped after step {step}; nothing was saved (--save_every_n_steps 0)": (
        "在第 {step} 步之後停止；沒有存檔（--save_every_n_steps 0）"
    ),
    "saved at step {step} of {max_steps}; run the same command to go on": (
        "已在第 {step}／{max_steps} 步存檔；執行相同的指令即可接續"
    ),
    "training": "訓練",
    "step {step}/{max_steps}  loss {loss:.4f}  lr {lr:.2e}  grad {grad:.3f}  {rate:,.0f} tok/s ({each:,.0f} each)"
    "  {memory:.1f} GiB": (
        "步 {step}/{max_steps}  loss {loss:.4f}  lr {lr:.2e}  grad {grad:.3f}  {rate:,.0f} tok/s（每行程 {each:,.0f}）"
        "  {memory:.1f} GiB"
    ),
    "{left} left": "剩 {left}",
    "step {step}: validation loss {loss:.4f} (perplexity {perplexity:.2f}, {samples} sample{samples:s})": (
        "第 {step} 步：驗證 loss {loss:.4f}（困惑度 {perplexity:.2f}，{samples} 個樣本）"
    ),
    "step {step}: checkpoint saved in {seconds:.1f} s": "第 {step} 步：檢查點已存，費時 {seconds:.1f} 秒",
    "step {step}: the loss is {loss} and the gradient norm {norm}. The step was not applied{checkpoint}. "
    "Lower --lr, keep clipping on (--clip_grad 1.0), and look at the samples of this step": (
        "第 {step} 步：loss 是 {loss}，梯度範數是 {norm}。這一步沒有套用{checkpoint}。請調低 --lr，保持梯度裁剪"
        "（--clip_grad 1.0），並檢查這一步的樣本"
    ),
    "; the last checkpoint is untouched": "，最後的檢查點不受影響",
    # Ends of a run: finetuning/runtime/progress.py, finetuning/launch/workers.py and stall_watch.py
    "killed before it could save; the newest checkpoint is of step {step}": "還沒存檔就被強制結束；最新的檢查點是第 {step} 步",
    "killed before it could save; there is no checkpoint yet": "還沒存檔就被強制結束；還沒有檢查點",
    "newest checkpoint at step {step}": "最新的檢查點在第 {step} 步",
    "no checkpoint yet": "還沒有檢查點",
    "the same command goes on from there": "執行相同的指令即可從那裡接續",
    "the same command starts anew": "執行相同的指令會從頭開始",
    "{name} was asked to stop {seconds:.0f} s ago: {doing}; finetune cancel --now {name} kills it, without saving": (
        "{name} 在 {seconds:.0f} 秒前已收到停止要求：{doing}；finetune cancel --now {name} 會立刻強制結束，不存檔"
    ),
    "finetune cancel --now {name} kills it": "finetune cancel --now {name} 會強制結束",
    "press again to kill": "再按一次就強制結束",
    "killing it, without saving": "強制結束，不存檔",
    "still {doing}; {kills}": "還在進行：{doing}；{kills}",
    "saving; {kills}": "正在存檔；{kills}",
    "stopping, with nothing to save; {kills}": "正在停止，沒有需要存檔的內容；{kills}",
    "asked to stop after the last step; test loss, answers and export are still to be done": (
        "最後一步之後收到停止要求；測試 loss、回答與匯出還沒做"
    ),
    "stopped after the last step, {step}; run the same command for test loss, answers and export": (
        "在最後一步（第 {step} 步）之後停止；執行相同的指令即可完成測試 loss、回答與匯出"
    ),
    "stopped at step {step} of {max_steps}, with nothing new to save; run the same command to go on": (
        "在第 {step}／{max_steps} 步停止，沒有新的內容需要存檔；執行相同的指令即可接續"
    ),
    "No step for {seconds:.0f} s (usually {usual})": "{seconds:.0f} 秒沒有完成任何一步（平常 {usual}）",
    "No sign of progress for {seconds:.0f} s, {doing}": "{seconds:.0f} 秒沒有進展（{doing}）",
    "; stopped by a signal (SIGSTOP): {ranks}": "；被訊號暫停（SIGSTOP）：{ranks}",
    "rank {rank}, process {pid}": "rank {rank}（行程 {pid}）",
    "; the run is ended after {limit:.0f} s of it (--stall_timeout_s)": (
        "；持續 {limit:.0f} 秒就會結束這次執行（--stall_timeout_s）"
    ),
    "it goes on, after {seconds:.0f} s": "{seconds:.0f} 秒後又有進展了",
    "the run hung and was ended. {sentence}. Where each rank was is at the end of {logs}/rank_*.log": (
        "執行卡住，已經結束。{sentence}。每個 rank 停在哪裡，見 {logs}/rank_*.log 的結尾"
    ),
    "starting": "啟動中",
    "loading the model": "載入模型",
    "in its first step, {step}": "進行這次的第一步（第 {step} 步）",
    "in step {step}": "進行第 {step} 步",
    "validating after step {step}": "第 {step} 步之後的驗證",
    "saving step {step}": "儲存第 {step} 步",
    "computing the test loss": "計算測試 loss",
    "generating answers": "產生回答",
    "writing the result": "寫出結果",
    "leaving": "結束中",
    "seconds without a step after which a run counts as hung and is ended; never less than four usual steps. Starts, first "
    "steps, saves and exports, which show no progress, have ten times as long (1800 s). 0: never": (
        "這麼多秒沒有完成任何一步，就視為卡住並結束；絕不少於平常四步的時間。啟動、第一步、存檔與匯出看不出進展，時間是十倍（1800 秒）。"
        "0：永不"
    ),
    "20 usual steps, at least 300": "平常 20 步的時間，至少 300",
    # Speed
    "--fp8 keeps the frozen weights whole on every GPU, and they do not fit; lower --row_length or "
    "--seq_length, or give --activation_checkpointing full, or more --pipeline_model_parallel_size": (
        "--fp8 讓每個 GPU 都保有完整的凍結權重，但放不下；請降低 --row_length 或 --seq_length，"
        "或給 --activation_checkpointing full，或提高 --pipeline_model_parallel_size"
    ),
    "--fp8 needs {flag} {value}": "--fp8 需要 {flag} {value}",
    "--fp8 needs a CUDA GPU of compute capability 8.9 or newer (Ada, Hopper); there is none here": (
        "--fp8 需要 compute capability 8.9 以上的 CUDA GPU（Ada、Hopper）；這裡沒有"
    ),
    # Launching: Slurm, verbs, doctor
    "container image of the job, a name in a registry or a file; none: no container": (
        "工作使用的容器映像檔：登錄庫中的名稱或檔案；none：不用容器"
    ),
    "what runs the image; auto: Pyxis where srun has it, else Apptainer": (
        "用什麼執行映像檔；auto：srun 有 Pyxis 就用，否則用 Apptainer"
    ),
    "time limit of the job, e.g. 8:00:00; it saves, requeues itself and goes on": (
        "工作的時間上限，例如 8:00:00；到時會存檔、自行重新排隊並接著訓練"
    ),
    "seconds before the time limit at which it starts to save": "在時間上限前幾秒開始存檔",
    "memory of each node, e.g. 200G; 0: all": "每個節點的記憶體，例如 200G；0：全部",
    "no other job on the nodes": "節點上不跑別的工作",
    "quality of service": "QOS（服務品質）",
    "features that the nodes must have": "節點必須有的特性",
    "nodes that the job must have": "工作一定要用的節點",
    "nodes that the job must not have": "工作不可用的節點",
    "jobs to wait for, e.g. afterok:1234": "要等待的工作，例如 afterok:1234",
    'shell lines before the workers start, e.g. "module load cuda"': '訓練行程啟動前執行的 shell 指令，例如 "module load cuda"',
    "Exit codes: 0 finished, 1 failed, 2 wrong input (nothing was started), 75 stopped and saved,\n"
    "130 interrupted: before the start, killed by a second Ctrl-C, or no longer following a Slurm job, which goes on.": (
        "結束碼：0 完成，1 失敗，2 輸入有誤（什麼都沒有啟動），75 已停止並存檔，\n"
        "130 中斷：啟動前中斷、第二次 Ctrl-C 強制結束，或不再跟隨 Slurm 工作（工作仍繼續）。"
    ),
    "submit the Slurm job and return; do not follow it": "送出 Slurm 工作後立即返回，不跟隨它",
    "fine-tune a model; `finetune train --help` lists the flags": "微調模型；`finetune train --help` 列出所有參數",
    "all experiments and how they are": "所有實驗與目前狀況",
    "how an experiment is, or how it ended": "一個實驗的狀況，或如何結束",
    "what an experiment has printed; -f follows it": "一個實驗印出的內容；-f 持續跟隨",
    "make an experiment save and stop": "讓一個實驗存檔並停止",
    "what would stop a run here, and what to do about it": "檢查這裡有什麼會讓訓練失敗，以及該怎麼做",
    "the address {address} of the first node cannot be resolved here ({reason}); see `scontrol show node`, NodeAddr": (
        "這裡無法解析第一個節點的位址 {address}（{reason}）；請看 `scontrol show node` 的 NodeAddr"
    ),
    "the first node's name {name} means {address} on this node, which is this node itself; mend its /etc/hosts, or set "
    "NodeAddr in slurm.conf": (
        "第一個節點的名稱 {name} 在這個節點上指向 {address}，"
        "也就是這個節點自己；請修正它的 /etc/hosts，或在 slurm.conf 設定 NodeAddr"
    ),
    "its process was ended by {signal} from outside": "它的行程被外部以 {signal} 結束",
    "its process was killed (SIGKILL) by somebody, or by the system because memory ran out; see `dmesg` on its machine": (
        "它的行程被強制結束（SIGKILL）：有人這麼做，或系統因記憶體不足而這麼做；請看該機器上的 `dmesg`"
    ),
    "--executor slurm: there is no sbatch on this machine; run the command on a login node of the cluster, or with "
    "--executor local": "--executor slurm：這台機器沒有 sbatch；請在叢集的登入節點執行，或改用 --executor local",
    "exit code {code}": "結束碼 {code}",
    "Slurm: {command}: {reason}": "Slurm：{command}：{reason}",
    "Slurm does not answer: {command} took more than {seconds} s": "Slurm 沒有回應：{command} 超過 {seconds} 秒",
    "Slurm's command {command} is not on this machine": "這台機器沒有 Slurm 的指令 {command}",
    "# One line for each machine; this one, {address}, is the first. All of them see {folder} and have this Python "
    "environment. The command without --dryrun writes run.yaml and the data.": (
        "# 每台機器一行；這台 {address} 是第一台。所有機器都要看得到 {folder}，並有同樣的 Python 環境。"
        "不加 --dryrun 的同一個指令會寫出 run.yaml 與資料。"
    ),
    "see how it is: finetune status {name} · its log: finetune logs {name} · end it: finetune cancel {name}": (
        "看狀況：finetune status {name} · 看紀錄：finetune logs {name} · 停止：finetune cancel {name}"
    ),
    "--detach has no effect without --executor slurm": "--detach 沒有 --executor slurm 就沒有作用",
    "to be started by hand on each machine": "要在每台機器上手動啟動",
    "no container: the nodes run this Python environment": "不用容器：節點使用目前的 Python 環境",
    "container {image} through Pyxis": "容器 {image}，透過 Pyxis",
    "container {image} through {runtime}": "容器 {image}，透過 {runtime}",
    "no container: srun has no Pyxis and this machine no Apptainer, so the default image {image} is left out and the nodes run "
    "this Python environment (--container_image none says the same)": (
        "不用容器：srun 沒有 Pyxis，這台機器也沒有 Apptainer，所以不用預設映像檔 {image}，節點使用目前的 Python 環境"
        "（等同 --container_image none）"
    ),
    "--container_image {image}: srun has no Pyxis and this machine no Apptainer; give --container_image none for this Python "
    "environment, or --container_runtime apptainer if only the nodes have it": (
        "--container_image {image}：srun 沒有 Pyxis，這台機器也沒有 "
        "Apptainer；請給 --container_image none 以使用目前的 Python 環境，"
        "若只有節點有 Apptainer，請給 --container_runtime apptainer"
    ),
    "--container_runtime {runtime} has no effect with --container_image none": (
        "--container_runtime {runtime} 與 --container_image none 一起用沒有作用"
    ),
    "{folder}: {free:.0f} GiB free": "{folder}：可用空間 {free:.0f} GiB",
    "writes {speed:.0f} MiB/s": "寫入速度 {speed:.0f} MiB/s",
    "{name}, reached at {address}": "{name}，位址 {address}",
    "checkpoints will take long; keep them few (--save_every_n_steps)": "存檢查點會很慢；請少存幾次（--save_every_n_steps）",
    "it has no address but loopback: runs on several machines cannot start from here": (
        "它只有 loopback 位址：無法從這裡啟動多機訓練"
    ),
    "the login of `hf auth login`": "`hf auth login` 的登入",
    "token from {source}": "token 來自 {source}",
    "no token (needed for gated models such as Meta's)": "沒有 token（Meta 等需要授權的模型才需要）",
    "partition {name}: {nodes} node{nodes:s} x {gpus} GPU{gpus:s}, {cpus} CPU{cpus:s}, time limit {limit}": (
        "partition {name}：{nodes} 個節點 x {gpus} 個 GPU，{cpus} 個 CPU，時間上限 {limit}"
    ),
    "machine": "機器",
    "{cores} core{cores:s}, {memory:.0f} GiB memory": "{cores} 核心，{memory:.0f} GiB 記憶體",
    "its name means {address} here, which is not used": "它的名稱在這裡指向 {address}，不使用這個位址",
    "network": "網路",
    "containers": "容器",
    "a GPU without bfloat16": "有 GPU 不支援 bfloat16",
    "Ampere (A100, RTX 30) or newer is needed": "需要 Ampere（A100、RTX 30）或更新的 GPU",
    "not part of this torch": "這個 torch 沒有包含",
    "install torch from https://pytorch.org": "請從 https://pytorch.org 安裝 torch",
    "all weights of an 8B model need about {needed} GiB for one checkpoint and the result (LoRA: 1 GiB); give another "
    "--experiments_dir": "8B 模型全參數微調的一個檢查點加結果約需 {needed} GiB（LoRA：1 GiB）；請給別的 --experiments_dir",
    "a network file system": "網路檔案系統",
    "a file system of this machine": "本機檔案系統",
    "limits": "系統限制",
    "{count} open files": "最多開啟 {count} 個檔案",
    "{size} KiB of locked memory, with InfiniBand": "鎖定記憶體上限 {size} KiB，且有 InfiniBand",
    "NCCL needs it unlimited: ulimit -l unlimited, in Slurm PropagateResourceLimits": (
        "NCCL 需要無上限：ulimit -l unlimited，在 Slurm 中是 PropagateResourceLimits"
    ),
    "no sbatch here: only --executor local": "這裡沒有 sbatch：只能用 --executor local",
    "the default": "預設",
    "keeps no accounts: --account is left out": "沒有帳戶管理：不給 --account",
    "your accounts: {names}": "你的帳戶：{names}",
    "neither Pyxis nor Apptainer here": "這裡沒有 Pyxis 也沒有 Apptainer",
    "jobs run this Python environment, which the nodes must see (--container_image none)": (
        "工作使用目前的 Python 環境，節點必須看得到它（--container_image none）"
    ),
    "jobs ask for --requeue themselves; a node failure is survived all the same": (
        "工作自己會要求 --requeue；節點故障時一樣能接著訓練"
    ),
    "pip install '{package}>={needed}'": "pip install '{package}>={needed}'",
    "none, and a torch without CUDA: runs here use CPU processes": "沒有 GPU，torch 也不含 CUDA：這裡的訓練用 CPU 行程",
    "driver {driver}, but this torch has no CUDA": "有驅動程式 {driver}，但這個 torch 不含 CUDA",
    "install torch from the index of your CUDA version: https://pytorch.org/get-started/locally/": (
        "請依 CUDA 版本安裝 torch：https://pytorch.org/get-started/locally/"
    ),
    "none here; on a login node that is as it should be": "這裡沒有 GPU；登入節點本來就是這樣",
    "torch {torch} for CUDA {cuda} cannot use driver {driver}": "torch {torch}（CUDA {cuda}）無法使用驅動程式 {driver}",
    "a newer driver, or a torch for an older CUDA; CUDA_VISIBLE_DEVICES is {visible}": (
        "請更新驅動程式，或安裝較舊 CUDA 的 torch；CUDA_VISIBLE_DEVICES 是 {visible}"
    ),
    "driver {driver}": "驅動程式 {driver}",
    "cannot be written: {reason}": "無法寫入：{reason}",
    "give another --experiments_dir": "請給別的 --experiments_dir",
    "the name {name} has no address": "名稱 {name} 沒有位址",
    "add it to /etc/hosts": "請加入 /etc/hosts",
    "give a local folder as --hf_model_id; behind a proxy set HTTPS_PROXY": (
        "請以本機資料夾作為 --hf_model_id；在 proxy 後面請設定 HTTPS_PROXY"
    ),
    "{hub} can be reached": "可以連到 {hub}",
    "only --executor local; see `scontrol ping`, and `systemctl status munge` on this machine": (
        "只能用 --executor local；請看 `scontrol ping`，以及這台機器的 `systemctl status munge`"
    ),
    "it is down": "目前停用",
    "not installed": "沒有安裝",
    "{hub} cannot be reached ({reason})": "連不到 {hub}（{reason}）",
    "not set": "未設定",
    "meeting": "會合",
    "{nodes} node{nodes:s} at {place} · {via} adds up {speed:.0f} MiB/s": (
        "{nodes} 個節點在 {place} 會合 · {via} 加總速度 {speed:.0f} MiB/s"
    ),
    "{host} cannot see {folder}; the nodes must share it": "{host} 看不到 {folder}；節點必須共用這個資料夾",
    "see docs/slurm.md, rendezvous": "見 docs/slurm.zh-TW.md 的會合位址",
    "cannot meet at {address}:{port}: {reason}": "無法在 {address}:{port} 會合：{reason}",
    'a firewall, or the wrong interface: --environment "NCCL_SOCKET_IFNAME=… GLOO_SOCKET_IFNAME=…"': (
        '可能是防火牆，或用錯網路介面：--environment "NCCL_SOCKET_IFNAME=… GLOO_SOCKET_IFNAME=…"'
    ),
    "other jobs come first": "其他工作優先",
    "no free nodes at the moment": "目前沒有空的節點",
    "Slurm starts a requeued job again after about two minutes": "Slurm 約兩分鐘後會再啟動重新排隊的工作",
    "other jobs have to end first": "要先等其他工作結束",
    "more --time than the partition allows; it will never start": "--time 超過 partition 的上限，永遠不會啟動",
    "more --num_nodes than the partition allows; it will never start": "--num_nodes 超過 partition 的上限，永遠不會啟動",
    "nodes are down or reserved": "節點停機或被保留",
    "job {job} waits: {reason}": "工作 {job} 等待中：{reason}",
    "to be scheduled": "等待排程",
    "job {job} runs on {nodes}": "工作 {job} 在 {nodes} 上執行",
    "Slurm's controller does not answer; the job is not affected, trying again …": (
        "Slurm 控制器沒有回應；工作不受影響，再試一次 …"
    ),
    "Slurm refused the job: {reason} (script: {script})": "Slurm 拒絕了工作：{reason}（腳本：{script}）",
    "the job was started {count} time{count:s} at step {step} without getting to a checkpoint; it is not started again. Lower "
    "--save_every_n_steps, or see what ended it in {log}": (
        "工作從第 {step} 步啟動了 {count} 次，都沒有存到檢查點，不再啟動。請降低 --save_every_n_steps，或在 {log} 看它為何結束"
    ),
    "time limit: saved at step {step} of {max_steps}; the job goes on by itself": (
        "時間上限：已在第 {step}/{max_steps} 步存檔；工作會自行接著訓練"
    ),
    "time limit: nothing new was saved since step {step}, so the job does not go on by itself; give more --time, or a shorter "
    "--save_time_s": (
        "時間上限：第 {step} 步之後沒有新的存檔，所以工作不會自行接著訓練；請給更長的 --time，或更短的 --save_time_s"
    ),
    "node {node}: {reason}": "節點 {node}：{reason}",
    "{path} cannot be seen on {host} after {seconds:.0f} s; the "
    "experiment folder must be on a file system that all nodes share "
    "(--experiments_dir)": (
        "等了 {seconds:.0f} 秒，{host} 仍看不到 {path}；實驗資料夾必須在所有節點共用的檔案系統上（--experiments_dir）"
    ),
    "no experiment {name} in {folder}; there are: {names} (--experiments_dir)": (
        "{folder} 沒有實驗 {name}；有：{names}（--experiments_dir）"
    ),
    "its launcher died without saying why; run the same command again": "啟動程式不明原因結束；請再執行同一個指令",
    "Slurm knows no GPU in partition {partition}: --num_gpus {count} means {count} CPU process{count:es} on each node "
    "(GPUs that Slurm "
    "does not list: --gpu_request gres)": (
        "Slurm 在 partition {partition} 沒有登記 GPU：--num_gpus {count} 代表每個節點 {count} 個 CPU 行程"
        "（有 GPU 但 Slurm 沒列出：--gpu_request gres）"
    ),
    "--gpu_request none: --num_gpus {count} means {count} CPU process{count:es} on each node": (
        "--gpu_request none：--num_gpus {count} 代表每個節點 {count} 個 CPU 行程"
    ),
    "--cpus_per_task {asked}: the nodes of partition {partition} have {found} CPU{found:s}": (
        "--cpus_per_task {asked}：partition {partition} 的節點只有 {found} 個 CPU"
    ),
    "the cluster has no partition {asked}; the job goes to its default one, {default} (all: {names})": (
        "叢集沒有 partition {asked}；工作送到預設的 {default}（全部：{names}）"
    ),
    "--partition {asked}: the cluster has no such partition; it has {names}": (
        "--partition {asked}：叢集沒有這個 partition；有 {names}"
    ),
    "--partition {asked}: is down; the cluster has {names}": "--partition {asked}：目前停用；叢集有 {names}",
    "--num_nodes {asked}: partition {partition} has {found} node{found:s}": (
        "--num_nodes {asked}：partition {partition} 有 {found} 個節點"
    ),
    "the cluster keeps no accounts; --account {asked} is left out": "叢集沒有帳戶管理；不給 --account {asked}",
    "you have no account {asked} here; the job gets your default one (yours: {names})": (
        "你在這裡沒有帳戶 {asked}；工作使用你的預設帳戶（你的帳戶：{names}）"
    ),
    "--account {asked}: not one of yours; you have {names}": "--account {asked}：不是你的帳戶；你有 {names}",
    (
        "--num_gpus {asked}: the nodes of partition {partition} have {found} GPU{found:s}; give --num_gpus "
        "{found} and more --num_nodes"
    ): ("--num_gpus {asked}：partition {partition} 的節點有 {found} 個 GPU；請給 --num_gpus {found} 並增加 --num_nodes"),
    "--time {given}: not a time limit of Slurm; write minutes, hours:minutes:seconds or days-hours": (
        "--time {given}：不是 Slurm 的時間格式；請寫分鐘數、hours:minutes:seconds 或 days-hours"
    ),
    "--gpu_request {asked}: --sbatch_options asks for GPUs already": "--gpu_request {asked}：--sbatch_options 已經要求 GPU",
    "--time {given}: the job would be told to save at once, because "
    "--save_time_s is {seconds}; give more time, or fewer seconds": (
        "--time {given}：因為 --save_time_s 是 {seconds}，工作一開始就會被要求存檔；請給更長的時間，或更少的秒數"
    ),
    "--{name} {text!r}: {reason}": "--{name} {text!r}：{reason}",
    "--environment: {word!r} is not NAME=VALUE": "--environment：{word!r} 不是「名稱=值」",
    "submitted job {job} ({script})": "已送出工作 {job}（{script}）",
    "following its log; Ctrl-C ends only that, the job goes on": "跟隨它的紀錄；Ctrl-C 只會停止跟隨，工作繼續執行",
    "job {job} ended as {state} without saying why": "工作 {job} 以 {state} 結束，沒有說明原因",
    "{name} is not passed to the job; log in with the tool that needs it (wandb login)": (
        "{name} 不會傳給工作；請用需要它的工具登入（wandb login）"
    ),
    "experiment {name} is job {job} already; see it with `finetune logs {name}`, end it with `finetune cancel {name}`, or give "
    "another --experiment name": (
        "實驗 {name} 已經是工作 {job}；用 `finetune logs {name}` 看紀錄，"
        "用 `finetune cancel {name}` 停止，或給別的 --experiment 名稱"
    ),
    "job {job} was cancelled": "工作 {job} 被取消",
    "ended by Slurm; goes on by itself if it was not cancelled": "被 Slurm 結束；若不是被取消，會自行接著訓練",
    "job {job} goes on; `finetune status {name}`, `finetune logs {name}`, `finetune cancel {name}`": (
        "工作 {job} 繼續執行；`finetune status {name}`、`finetune logs {name}`、`finetune cancel {name}`"
    ),
    "job {job} was cancelled before it could save; {checkpoint}": "工作 {job} 還沒存檔就被取消；{checkpoint}",
    "job {job} reached its time limit before it had saved; give a larger --save_time_s": (
        "工作 {job} 還沒存完檔就到了時間上限；請給更大的 --save_time_s"
    ),
    "job {job} used more memory of the node than it had asked for; give more --mem": (
        "工作 {job} 用的節點記憶體超過要求的量；請給更大的 --mem"
    ),
    "a node of job {job} failed": "工作 {job} 有節點故障",
    "job {job} had to give way to another before it had saved": "工作 {job} 還沒存檔就必須讓位給別的工作",
    "asked {name} to stop; waiting until it has ended (Ctrl-C ends only the waiting) …": (
        "已要求 {name} 停止；等它結束（Ctrl-C 只會停止等待）…"
    ),
    "{name} still runs after {seconds:.0f} s; finetune cancel --now does not wait": (
        "{name} 過了 {seconds:.0f} 秒仍在執行；finetune cancel --now 不等它存檔"
    ),
    "experiment {name} does not run: {state} {reason}": "實驗 {name} 沒有在執行：{state} {reason}",
    "experiment {name} was started by hand; end it where its torchrun runs": (
        "實驗 {name} 是手動啟動的；請在執行 torchrun 的地方停止"
    ),
    "experiment {name} runs on {host}; cancel it there": "實驗 {name} 在 {host} 上執行；請到那裡取消",
    "nothing here would stop a run": "這裡沒有會讓訓練失敗的問題",
    "a run would fail here; see the red lines": "訓練在這裡會失敗；請看紅色的項目",
    "allocation": "資源分配",
    "node {node}": "節點 {node}",
    "left no answer in {folder}: {reason}": "沒有在 {folder} 留下結果：{reason}",
    "all nodes must share --experiments_dir and this Python environment": (
        "所有節點必須共用 --experiments_dir 與目前的 Python 環境"
    ),
    "experiment": "實驗",
    "state": "狀態",
    "step": "步",
    "where": "位置",
    "last sign of life": "最後更新",
    "reason": "原因",
    "no experiments in {folder}": "{folder} 沒有任何實驗",
    "experiment {name} has no {log} yet ({state})": "實驗 {name} 還沒有 {log}（{state}）",
    "requeued {count} time{count:s}": "已重新排隊 {count} 次",
    "changed": "更新時間",
    "log": "紀錄",
    "{step}, loss {loss:.4f}": "{step}，loss {loss:.4f}",
    "{host} has {found} usable GPUs, and --num_gpus asks for {asked}; see `nvidia-smi` there": (
        "{host} 有 {found} 個可用的 GPU，而 --num_gpus 要 {asked} 個；請在那裡看 `nvidia-smi`"
    ),
    # finetuning/parallel, finetuning/parallel/selftest.py
    "compare a parallel layout with one process, on this machine": "在這台機器上，將平行化配置與單一行程比較",
    "whole copies of the sharded weights; a divisor of data parallel": "分片權重的完整份數；須整除資料平行數",
    "full: weights are gathered for each use; step: once a step; replicated: frozen ones are whole": (
        "full：每次使用時收集權重；step：每步一次；replicated：凍結的權重完整保存"
    ),
    "order of forward and backward passes in a pipeline": "管線中前向與反向的順序",
    "--profile_steps {count} looks at steps after the first {first}; give a --max_steps above {first}": (
        "--profile_steps {count} 只看前 {first} 步之後的步驟；請給大於 {first} 的 --max_steps"
    ),
    "compare only in this precision; left out: in each": "只用這種精度比較；不給則每種都比較",
    "plain, or fused as in training on GPUs (float32 and bfloat16); auto: fused with CUDA only": (
        "plain，或與 GPU 上訓練相同的 fused（float32 與 bfloat16）；auto：只在有 CUDA 時用 fused"
    ),
    "fused": "融合區塊",
    "also write the table as JSON": "另外把表格寫成 JSON",
    "--pipeline_schedule {schedule} has no effect without --pipeline_model_parallel_size 2 or more": (
        "--pipeline_schedule {schedule}：沒有 --pipeline_model_parallel_size 2 以上時沒有作用"
    ),
    (
        "--sharding replicated keeps frozen weights whole, and without --peft lora none are frozen; for whole "
        "copies of trained weights give --data_parallel_replicate_size"
    ): (
        "--sharding replicated 完整保存凍結的權重，但沒有 --peft lora "
        "就沒有凍結的權重；要完整保存所訓練的權重，請給 --data_parallel_replicate_size"
    ),
    (
        "--sharding full gathers weights for each use, but a pipeline schedule gathers them once per step; give "
        "--sharding step, or replicated with --peft lora"
    ): ("--sharding full 每次使用時收集權重，但管線排程每步只收集一次；請給 --sharding step，或以 --peft lora 搭配 replicated"),
    ("--tensor_model_parallel_size {degree}: must divide the vocabulary of {vocabulary} and the MLP's {inner} features"): (
        "--tensor_model_parallel_size {degree}：必須整除詞彙表大小 {vocabulary} 與 MLP 的 {inner} 個特徵"
    ),
    (
        "--pipeline_model_parallel_size {degree} with --pipeline_schedule {schedule} makes {stages} stages, but "
        "the model has only {layers} layer{layers:s}"
    ): (
        "--pipeline_model_parallel_size {degree} 與 --pipeline_schedule {schedule} 會分成 {stages} "
        "個階段，但模型只有 {layers} 層"
    ),
    "--data_parallel_replicate_size {copies}: must divide data parallel {data}; use {choices}": (
        "--data_parallel_replicate_size {copies}：必須整除資料平行數 {data}；可用 {choices}"
    ),
    "{world} {kind} = {axes} · {samples} sample{samples:s} per step in {rows} packed rows of at most {length:,}, about "
    "{tokens:,} token{tokens:s}": (
        "{world} 個 {kind} = {axes} · 每步 {samples} 個樣本，打包成 {rows} 列（每列最多 {length:,}），約 {tokens:,} 個 token"
    ),
    "tensor parallel": "張量平行",
    "context parallel": "上下文平行",
    "pipeline parallel": "管線平行",
    "data parallel": "資料平行",
    "Trains one batch of a tiny model in this layout and in one process, and compares every gradient.": (
        "以此配置與單一行程訓練極小模型的一個批次，並比較每一個梯度。"
    ),
    "GPUs; without CUDA, CPU processes": "GPU 數；沒有 CUDA 時是 CPU 行程數",
    "compare only this way of training; left out: all": "只比較這種訓練方式；不給則全部比較",
    "{layout} against one process": "{layout} 與單一行程的比較",
    "loss": "損失",
    "one process": "單一行程",
    "gradient norm": "梯度範數",
    "largest difference": "最大差異",
    "limit": "上限",
    "verdict": "結果",
    "equal": "相等",
    "NOT EQUAL: {weight}": "不相等：{weight}",
    # data: findings, formats, check, preview, prepare, ledger, and the pages about them
    "check, preview and convert training data; what a step was trained on": "檢查、預覽、轉換訓練資料；查詢某一步用了哪些資料",
    "longest sample in tokens": "最長樣本的 token 數",
    "{path}: the chat template cannot be used ({error}); fix it, or give --prompt_template": (
        "{path}：chat template 無法使用（{error}）；請修正，或給定 --prompt_template"
    ),
    "{path}: the chat template takes too much time or memory; give --prompt_template": (
        "{path}：chat template 耗用太多時間或記憶體；請給定 --prompt_template"
    ),
    "it writes {count:,} character{count:s}": "它寫出 {count:,} 個字元",
    "it asks for the date in a way that cannot be fixed for an export": "它取得日期的方式無法在匯出時固定下來",
    "{file}: the tokenizer fails: {error}": "{file}：tokenizer 執行失敗：{error}",
    "{file}: the tokenizer takes too much time or memory": "{file}：tokenizer 耗用太多時間或記憶體",
    "--{name}: {count:,} character{count:s}; at most {limit:,} are used": "--{name}：{count:,} 個字元；最多使用 {limit:,} 個",
    "begins with the begin token, which is not doubled": "以開頭 token 起始，且沒有重複",
    "the chat template itself writes the same text": "chat template 本身寫出的文字相同",
    "every token has a row in the embedding table": "每個 token 在 embedding 表中都有一列",
    "also list every token with its id": "同時列出每個 token 及其編號",
    "the chat template fails on it ({theirs}); change the sample, or give --prompt_template": (
        "chat template 處理它時失敗（{theirs}）；請修改樣本，或給定 --prompt_template"
    ),
    "the chat template depends on the text itself: it writes {theirs!r} where the sample has {ours!r}; change the sample, or "
    "give --prompt_template": (
        "chat template 會隨文字內容改變：樣本是 {ours!r} 之處，它寫成 {theirs!r}；請修改樣本，或給定 --prompt_template"
    ),
    "the tokenizer fails on this sample: {error}": "tokenizer 處理這個樣本時失敗：{error}",
    "would not begin with exactly one begin-of-text token": "開頭不會剛好是一個 begin-of-text token",
    "an answer would not end with a trained end token, so the model would not learn to stop there": (
        "有回答不會以訓練到的結束 token 結尾，模型就學不會在那裡停下"
    ),
    "token {token!r} has the id {id}, and the model's embedding table only {size} rows; enlarge the table, or use the "
    "tokenizer that belongs to the model": (
        "token {token!r} 的編號是 {id}，但模型的 embedding 表只有 {size} 列；請擴大該表，或使用屬於此模型的 tokenizer"
    ),
    "the chat template writes it otherwise": "chat template 寫法不同",
    "the tokenizer fails": "tokenizer 失敗",
    "wrong begin of text": "開頭有誤",
    "no end token": "沒有結束 token",
    "token without an embedding": "沒有 embedding 的 token",
    "{file}: a process that read it was ended: the tokenizer or the chat template takes too much time or memory on a text "
    "there, or the machine has too little memory": (
        "{file}：讀取它的程序被結束：tokenizer 或 chat template 在其中某段文字上耗用太多時間或記憶體，或這台機器的記憶體太少"
    ),
    "drop and list samples that cannot be used, instead of refusing the data": "捨棄並列出無法使用的樣本，而不是拒絕整份資料",
    "--{name} has no effect: Megatron data holds tokens": "--{name} 沒有作用：Megatron 資料存的是 token",
    "--skip_bad_samples would drop {bad} of {total} sample{total:s}": (
        "加上 --skip_bad_samples 會捨棄 {total} 筆樣本中的 {bad} 筆"
    ),
    ("--dataset_path {path}: {files} — name them training*.bin, validation*.bin and test*.bin, or give one of them"): (
        "--dataset_path {path}：{files} — 請命名為 training*.bin、validation*.bin、test*.bin，或指定其中一個"
    ),
    "{path}: {count} document{count:s} cannot be split into training, validation and test; 3 are needed": (
        "{path}：{count} 份文件無法分成訓練、驗證、測試三部分；至少需要 3 份"
    ),
    "cannot be read ({reason}); the file is damaged, or not what its name says": (
        "無法讀取（{reason}）；檔案已損壞，或內容與副檔名不符"
    ),
    "unpacks to more than {times} times its size; the file is damaged, or made to fill the memory": (
        "解開後超過原本的 {times} 倍大；檔案已損壞，或是刻意用來塞滿記憶體"
    ),
    "the file is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8": (
        "檔案是 UTF-16 編碼；請另存為 UTF-8：iconv -f UTF-16 -t UTF-8"
    ),
    "one JSON array; a line for each object is needed: `finetune data prepare` converts it": (
        "整個檔案是一個 JSON 陣列；必須一行一個物件：`finetune data prepare` 可以轉換"
    ),
    "a line of more than {limit_mib} MiB; is a line end missing?": "有一行超過 {limit_mib} MiB；是不是少了換行？",
    "holds no samples": "沒有任何樣本",
    "not UTF-8 (in column '{column}'); write it as text": "不是 UTF-8（欄位 '{column}'）；請以文字格式寫入",
    "not UTF-8 (byte {position}), it looks like {looks_like}; save the file as UTF-8": (
        "不是 UTF-8（第 {position} 個位元組），看起來是 {looks_like}；請將檔案另存為 UTF-8"
    ),
    "not valid JSON: nested too deeply": "不是有效的 JSON：巢狀太深",
    "not valid JSON: a number of thousands of digits": "不是有效的 JSON：有一個數字長達數千位",
    "not valid JSON ({message} at column {column})": "不是有效的 JSON（第 {column} 欄：{message}）",
    "must be a JSON object with 'input' and 'output'": "必須是含有 'input' 與 'output' 的 JSON 物件",
    (
        "'messages' must be an optional system message, then user and assistant in turns, ending with the ass"
        "istant; found {found}"
    ): ("'messages' 可以先有一則 system 訊息，接著 user 與 assistant 輪流，並以 assistant 結尾；目前是 {found}"),
    (
        "field 'history' would change the sample and is not supported; write earlier turns as 'messages', of "
        "which every answer is trained"
    ): ("欄位 'history' 會改變樣本，但不支援；請把先前的對話寫成 'messages'，其中每個答案都會訓練"),
    ("field '{name}' would change the sample and is not supported: {value}; remove the field, or leave the sample out"): (
        "欄位 '{name}' 會改變樣本，但不支援：{value}；請移除這個欄位，或不要放這筆樣本"
    ),
    "holds {names} of another format as well, with a text of its own; keep the fields of one format": (
        "另外還有屬於其他格式的 {names}，而且文字不同；請只保留一種格式的欄位"
    ),
    "has two different system messages: in 'messages' and in 'system'": (
        "有兩則不同的 system 訊息：一則在 'messages'，一則在 'system'"
    ),
    "half a character (an unpaired \\ud800 … \\udfff escape), which no text can hold": (
        "只有半個字元（不成對的 \\ud800 … \\udfff 跳脫序列），任何文字都無法表示"
    ),
    "the answer ('{name}') is empty": "答案（'{name}'）是空的",
    "the question ('{name}') is empty": "問題（'{name}'）是空的",
    "has a system message, for which --prompt_template has no place": ("有 system 訊息，但 --prompt_template 沒有放它的位置"),
    "has several turns, but the tokenizer's chat template cannot be repeated; give --prompt_template": (
        "有多輪對話，但 tokenizer 的聊天模板無法重複；請給 --prompt_template"
    ),
    (
        "{tokens} tokens ({prompt} of them prompt) do not fit --seq_length {seq_length}; the answer would be "
        "cut; shorten it, give --seq_length {tokens} or more, or choose with --truncation"
    ): (
        "{tokens} 個 token（其中 {prompt} 個是提示）超過 --seq_length {seq_lengt"
        "h}，答案會被截斷；請縮短、把 --seq_length 設為 {tokens} 以上，或用 --truncation "
        "選擇處理方式"
    ),
    (
        "more than {at_least} tokens do not fit --seq_length {seq_length}; the answer would be cut; shorten it, "
        "or choose with --truncation"
    ): ("超過 {at_least} 個 token，放不進 --seq_length {seq_length}，答案會被截斷；請縮短，或用 --truncation 選擇處理方式"),
    "more than {at_least} tokens do not fit --seq_length {seq_length}: the input is cut": (
        "超過 {at_least} 個 token，放不進 --seq_length {seq_length}：截短輸入"
    ),
    "more than {at_least} tokens do not fit --seq_length {seq_length}: the sample is dropped": (
        "超過 {at_least} 個 token，放不進 --seq_length {seq_length}：捨棄這筆樣本"
    ),
    "begins with a byte order mark; it is skipped": "開頭有位元組順序記號（BOM）；已略過",
    "{value} is not JSON; it is read as a number": "{value} 不是 JSON；當成數字讀取",
    "not used: {count} field{count:s} of other names": "另外還有 {count} 個其他名稱的欄位沒有使用",
    "field '{name}' is not used ({count} time{count:s} in this file)": "欄位 '{name}' 沒有使用（這個檔案裡有 {count} 次）",
    "key '{name}' stands twice; the last one counts": "鍵 '{name}' 出現兩次；以最後一個為準",
    "holds '\ufffd', the trace of a text read in the wrong encoding": "含有 '\ufffd'，這是用錯編碼讀取文字留下的痕跡",
    "a chat template's '{text}' is part of the text; the template is added here, so it would stand twice": (
        "文字裡有聊天模板的 '{text}'；模板會由本程式加上，這樣會重複"
    ),
    "'{token}' inside the text is treated as plain text, never as a control token": (
        "文字裡的 '{token}' 一律當成普通文字，不會當成控制 token"
    ),
    "the same as {other}": "與 {other} 相同",
    "almost the same as {other} (about {percent} %)": "與 {other} 幾乎相同（約 {percent} %）",
    "also in {other}: measured on it, the model looks better than it is": "{other} 也有：用它評估，模型會顯得比實際更好",
    "the same question as {other}: measured on it, the model looks better than it is": (
        "與 {other} 是同一個問題：用它評估，模型會顯得比實際更好"
    ),
    "almost the same as {other} (about {percent} %): measured on it, the model looks better than it is": (
        "與 {other} 幾乎相同（約 {percent} %）：用它評估，模型會顯得比實際更好"
    ),
    "Simplified characters in Traditional Chinese data: {characters}": "繁體中文資料裡有簡體字：{characters}",
    "Traditional characters in Simplified Chinese data: {characters}": "簡體中文資料裡有繁體字：{characters}",
    "{tokens} tokens do not fit --seq_length {seq_length}: {removed} token{removed:s} of the input are cut": (
        "{tokens} 個 token 超過 --seq_length {seq_length}：輸入截掉了 {removed} 個 token"
    ),
    "{tokens} tokens do not fit --seq_length {seq_length}: the sample is dropped": (
        "{tokens} 個 token 超過 --seq_length {seq_length}：捨棄這筆樣本"
    ),
    "unreadable file": "無法讀取的檔案",
    "unpacks without end": "解開後沒完沒了",
    "empty file": "空檔案",
    "field that is not supported": "不支援的欄位",
    "several formats in one record": "一筆資料有多種格式",
    "two system messages": "兩則 system 訊息",
    "empty question": "問題是空的",
    "NaN or Infinity": "NaN 或 Infinity",
    "field that is not used": "沒有使用的欄位",
    "UTF-16 file": "UTF-16 檔案",
    "JSON array": "JSON 陣列",
    "line too large": "行過大",
    "not UTF-8": "不是 UTF-8",
    "not valid JSON": "不是有效的 JSON",
    "not an object": "不是物件",
    "missing field": "缺少欄位",
    "wrong type": "型別錯誤",
    "wrong turns": "對話順序錯誤",
    "half a character": "半個字元",
    "empty answer": "答案是空的",
    "system message without a place": "system 訊息沒有位置",
    "several turns without a place": "多輪對話沒有位置",
    "too long": "過長",
    "byte order mark": "位元組順序記號",
    "key twice": "重複的鍵",
    "replacement character": "替代字元",
    "pasted template": "貼上的模板",
    "special token in the text": "文字裡的特殊 token",
    "exact duplicate": "完全重複",
    "near duplicate": "近似重複",
    "leakage between the parts": "各部分之間的資料洩漏",
    "Simplified in Traditional Chinese": "繁體中文裡的簡體字",
    "Traditional in Simplified Chinese": "簡體中文裡的繁體字",
    "input cut": "輸入被截短",
    "dropped: too long": "捨棄：過長",
    "{file}: not a Megatron index (its first bytes are not MMIDIDX)": "{file}：不是 Megatron 索引檔（開頭不是 MMIDIDX）",
    "{file}: version {version} with data type {code} cannot be read; version 1 with whole numbers can": (
        "{file}：無法讀取版本 {version}、資料型別 {code}；可以讀取的是版本 1 的整數"
    ),
    "{file}: {found} bytes, but its header promises {needed}; is it complete?": (
        "{file}：只有 {found} 個位元組，但檔頭說有 {needed} 個；檔案完整嗎？"
    ),
    "{file}: {found} bytes, but its index needs {needed}; is it complete?": (
        "{file}：只有 {found} 個位元組，但索引需要 {needed} 個；檔案完整嗎？"
    ),
    "{file}: there is no such file; Megatron data is a .bin and an .idx of the same name": (
        "{file}：沒有這個檔案；Megatron 資料是同名的一個 .bin 和一個 .idx"
    ),
    "Training data: {subject}": "訓練資料：{subject}",
    "{samples:,} sample{samples:s}, median {median:,}, longest {longest:,} token{longest:s}": (
        "{samples:,} 筆樣本，中位數 {median:,}、最長 {longest:,} 個 token"
    ),
    "{tokens} token{tokens:s}, {trained} of them trained": "{tokens} 個 token，其中訓練 {trained} 個",
    "usable samples": "可用的樣本",
    "file": "檔案",
    "format": "格式",
    "usable": "可用",
    "MiB": "MiB",
    "the first {shown} of {total}": "{total} 項中的前 {shown} 項",
    "trained": "訓練",
    "not trained": "不訓練",
    "control token": "控制 token",
    "training tokens": "訓練用的 token",
    "answer tokens among them": "其中答案的 token",
    "longest sample, tokens": "最長樣本的 token 數",
    "steps per epoch, {batch} sample{batch:s} each": "每個 epoch 的步數，每步 {batch} 筆樣本",
    "computed positions that are real tokens": "計算的位置中真正是 token 的比例",
    "work of the slowest of {ranks} rank{ranks:s} above the mean": "{ranks} 個 rank 中最慢者比平均多出的工作量",
    "times as much, if padded instead of packed": "倍：若用補齊而不打包所需的計算量",
    "Files": "檔案",
    "Findings": "發現的問題",
    "Token lengths": "token 長度",
    "tokens": "token 數",
    "samples": "樣本數",
    "As the model sees it": "模型看到的樣子",
    "{count} error{count:s}: errors stop a training": "{count} 個錯誤，無法開始訓練",
    "none": "沒有",
    "no errors, {count} warning{count:s}": "沒有錯誤，{count} 個警告",
    "nothing to complain about": "沒有發現問題",
    "place": "位置",
    "what": "說明",
    "{place}: holds no sample that can be used; `finetune data check` says why": (
        "{place}：沒有可以使用的樣本；`finetune data check` 會說明原因"
    ),
    "{file}:{line} · {tokens} token{tokens:s}, {trained} of them trained (in brackets)": (
        "{file}:{line} · {tokens} 個 token，其中訓練 {trained} 個（方括號內）"
    ),
    "exactly one begin-of-text token": "開頭 token 剛好一個",
    "every answer ends with a trained end token": "每個答案都以有訓練的結束 token 結尾",
    "the prompt is, token for token, the beginning of the sample": "提示的每個 token 都與樣本的開頭一致",
    "reading the data": "讀取資料",
    "{file}: {samples:,} usable of {records:,} record{records:s}, {formats}, {size:.1f} MiB": (
        "{file}：{records:,} 筆中可用 {samples:,} 筆，{formats}，{size:.1f} MiB"
    ),
    (
        "{split}: {samples:,} sample{samples:s}, {tokens:,} token{tokens:s}, {answers:,} of them answers, median "
        "{median:,}, longest {longest:,}"
    ): ("{split}：{samples:,} 筆樣本，{tokens:,} 個 token，其中答案 {answers:,} 個，中位數 {median:,}，最長 {longest:,}"),
    (
        "packing: {steps:,} step{steps:s} per epoch of {batch} sample{batch:s}; {fill:.1%} of the computed positions are real"
        " tokens; the slowest of {ranks} rank{ranks:s} has {imbalance:.1%} more work than the mean; padded instead, i"
        "t would be {padded:.1f} times as much"
    ): (
        "打包：每個 epoch {steps:,} 步，每步 {batch} 筆樣本；計算的位置有 {fill:.1%} 是真正"
        "的 token；{ranks} 個 rank 中最慢的比平均多 {imbalance:.1%} 的工作量；若改用補齊，計"
        "算量是 {padded:.1f} 倍"
    ),
    "✗ {errors} error{errors:s}, {warnings} warning{warnings:s}: errors stop a training": (
        "✗ {errors} 個錯誤、{warnings} 個警告：有錯誤就不會開始訓練"
    ),
    "✓ no errors, {warnings} warning{warnings:s}": "✓ 沒有錯誤，{warnings} 個警告",
    "… and {rest:,} more": "… 還有 {rest:,} 項",
    "{path}: not a JSON array": "{path}：不是 JSON 陣列",
    "{path}: not a JSON array: {error}": "{path}：不是 JSON 陣列：{error}",
    "--dataset_path {path}: not a data file; use {suffixes}": "--dataset_path {path}：不是資料檔；可用 {suffixes}",
    "--dataset_path {path}: {files} are for the same split; keep one": (
        "--dataset_path {path}：{files} 屬於同一部分；請只留一個"
    ),
    "{folder}: {written:,} of {records:,} sample{records:s} written ({sizes}); the others are listed above": (
        "{folder}：寫入 {records:,} 筆樣本中的 {written:,} 筆（{sizes}）；其餘列在上面"
    ),
    "written: {path}": "已寫入：{path}",
    "Training data, looked at before and after a training.": "在訓練之前與之後檢視訓練資料。",
    "report everything that is wrong or suspicious, with file and line": "報告所有錯誤與可疑之處，附檔名與行號",
    "data folder, or files": "資料夾，或檔案",
    "of a sample that is too long": "樣本過長時怎麼處理",
    "samples per optimizer step, for the steps of an epoch and the packing": (
        "每個最佳化步驟的樣本數，用來計算每個 epoch 的步數與打包"
    ),
    "ranks that share a global batch": "分擔一個 global batch 的 rank 數",
    "also write the report as JSON": "另外把報告寫成 JSON",
    "also write the report as a page for a browser": "另外把報告寫成可用瀏覽器開啟的網頁",
    "show a sample exactly as the model sees it": "顯示模型實際看到的樣本",
    "data folder or file": "資料夾或檔案",
    "file of the folder": "資料夾裡的哪一個檔案",
    "line of the file; left out: the first that can be used": "檔案的第幾行；不給則為第一筆可用的樣本",
    "also write a page for a browser": "另外寫成可用瀏覽器開啟的網頁",
    "convert data, drop duplicates, and split it without leakage": "轉換資料、去除重複，並在不洩漏的情況下分割",
    "file, or folder of files, in any readable format": "任何可讀格式的檔案，或放這些檔案的資料夾",
    "folder to write; must be new or empty": "要寫入的資料夾；必須是新的或空的",
    "jsonl: training.jsonl, validation.jsonl, test.jsonl; megatron: .bin and .idx": (
        "jsonl：training.jsonl、validation.jsonl、test.jsonl；megatron：.bin 與 .idx"
    ),
    "part of the samples, 0 to 0.5": "占樣本的比例，0 到 0.5",
    "decides which samples are held out": "決定保留哪些樣本",
    "keep samples that are there twice": "保留重複的樣本",
    "print the lines that a step of an experiment was trained on": "列出實驗的某一步用哪些行訓練",
    "name of the experiment": "實驗名稱",
    "optimizer step, from 1; left out: a line for each step": "最佳化步驟，從 1 起算；不給則每步一行",
    "the steps that consumed this line instead": "改為列出用過這一行的步驟",
    "model whose tokenizer counts the tokens: a local folder, or a name on the hub": (
        "用來計算 token 的模型：本機資料夾，或 hub 上的名稱"
    ),
    "text with {{input}} and {{output}} instead of the chat template": "以含有 {{input}} 與 {{output}} 的文字取代聊天模板",
    "tokens were not counted; give --hf_model_id for lengths, packing and previews": (
        "沒有計算 token；給 --hf_model_id 就會有長度、打包與預覽"
    ),
    "{path}: has no {split} file": "{path}：沒有 {split} 檔",
    "--to megatron writes tokens; give the model whose tokenizer makes them as --hf_model_id": (
        "--to megatron 會寫入 token；請用 --hf_model_id 指定產生 token 的模型"
    ),
    "{folder}: exists and is not empty; give a new folder": "{folder}：已存在而且不是空的；請指定新的資料夾",
    "{path}: not a data file; use {suffixes}": "{path}：不是資料檔；可用 {suffixes}",
    "{folder}: there is no ledger; is --experiment the name of one that has been trained?": (
        "{folder}：沒有帳本；--experiment 是訓練過的實驗名稱嗎？"
    ),
    "{folder}: the ledger has no such step or line": "{folder}：帳本裡沒有這一步或這一行",
    "{path}: there is no such file": "{path}：沒有這個檔案",
    "step {step}: {samples:,} sample{samples:s}, {tokens:,} token{tokens:s}, {answers:,} of them answers": (
        "第 {step} 步：{samples:,} 筆樣本，{tokens:,} 個 token，其中答案 {answers:,} 個"
    ),
    "{path}: Megatron data holds tokens; there is no text to check": "{path}：Megatron 資料存的是 token，沒有文字可以檢查",
    "{path}: not a data file": "{path}：不是資料檔",
    "must be 0 to 0.5": "必須介於 0 與 0.5 之間",
    "step {step}  {place}  {tokens:,} token{tokens:s}, {answers:,} of them answers": (
        "第 {step} 步  {place}  {tokens:,} 個 token，其中答案 {answers:,} 個"
    ),
    "checked": "檢查",
    "{summary} · see data/report.html in the folder below": "{summary} · 詳見下方資料夾的 data/report.html",
    "{folder}: the adapter has --{name} {found}, but the run asks for {wanted}; give the same, or leave it out": (
        "{folder}：adapter 是 --{name} {found}，但這次要求 {wanted}；請給相同的值，或不給"
    ),
    "{path}: is there already; give another folder, or remove it first": ("{path}：已經存在；請指定別的資料夾，或先移除它"),
    "{path}: cannot be made: {reason}": ("{path}：無法建立：{reason}"),
    "{path}: needs {needed:.1f} GiB, and the disk has {free:.1f}": ("{path}：需要 {needed:.1f} GiB，磁碟只剩 {free:.1f}"),
    "{name} is {found} there, the model's is {wanted}": ("{name} 在那裡是 {found}，模型的是 {wanted}"),
    "{folder}: {name} has the shape {found}, which is no adapter of rank {ranks}": (
        "{folder}：{name} 的形狀是 {found}，不是秩為 {ranks} 的 adapter"
    ),
    "{folder}: {name} and its lora_B have ranks that differ": "{folder}：{name} 與它的 lora_B 的秩不同",
    "{file}: names no adapter of {names}, but {weights} holds one, which PEFT would pass over": (
        "{file}：沒有指定 {names} 的 adapter，但 {weights} 裡有；PEFT 會略過它"
    ),
    "{folder}: what is stored is not only LoRA of linear layers: {shown}": ("{folder}：存的不只是線性層的 LoRA：{shown}"),
    "{file} is missing (other weight files: {there}); weights must be in safetensors format": (
        "缺少 {file}（其他權重檔：{there}）；權重必須是 safetensors 格式"
    ),
    "{folder}: made with init_lora_weights={value!r}, which changes the base weights as well; convert it "
    "with PEFT (path_initial_model_for_weight_conversion)": (
        "{folder}：以 init_lora_weights={value!r} 製作，基礎權重也會改變；請用 PEFT 轉換（path_initial_model_for_"
        "weight_conversion）"
    ),
    "{path}: the adapter belongs to another model: {shown}": ("{path}：adapter 屬於別的模型：{shown}"),
    "{path}: neither a model in Hugging Face format (config.json), nor an adapter ({adapter}), nor a "
    "complete checkpoint ({checkpoint}) or an experiment with one; found {found}": (
        "{path}：不是 Hugging Face 格式的模型（config.json），不是 adapter（{adapter}），也不是完整的檢查點（{check"
        "point}）或有檢查點的實驗；找到的是 {found}"
    ),
    "--base {base}: {path} is a whole model and has none": ("--base {base}：{path} 是完整的模型，沒有基礎模型"),
    "{path}: the model that it was trained from is not here ({named}); give it as --base": (
        "{path}：當初用來訓練的模型不在這裡（{named}）；請用 --base 指定"
    ),
    "--{name} {given!r}: the model was trained with {trained!r}; leave the flag out": (
        "--{name} {given!r}：模型訓練時用的是 {trained!r}；請不要給這個旗標"
    ),
    "none is named": ("沒有寫明"),
    "{path}: was trained on {name} with fingerprint {expected}; {base} has {found}. On other weights an "
    "adapter gives wrong answers; give the right one as --base": (
        "{path}：訓練時的基礎模型是 {name}，指紋 {expected}；{base} 的指紋是 {found}。adapter 用在別的權重上會給出"
        "錯誤的答案；請用 --base 指定正確的模型"
    ),
    "{name}: holds {largest:.3g}, and float16 ends at 65504; give --dtype bfloat16 or float32": (
        "{name}：有 {largest:.3g}，而 float16 最大只到 65504；請給 --dtype bfloat16 或 float32"
    ),
    "{folder}: the chat template is not the one that the model was trained with (hash {found}, in "
    "training {trained}). In training: {before!r}; now: {now!r}. Put the trained one back": (
        "{folder}：聊天模板與訓練時不同（雜湊 {found}，訓練時 {trained}）。訓練時：{before!r}；現在：{now!r}。請"
        "換回訓練時的模板"
    ),
    "{folder}: the tokenizer is not the one that the model was trained with: {text!r} was {before}, is "
    "now {now}. Put the trained one back": (
        "{folder}：tokenizer 與訓練時不同：{text!r} 原本是 {before}，現在是 {now}。請換回訓練時的 tokenizer"
    ),
    "--device cuda: there is no CUDA GPU here; give cpu, or leave it out": (
        "--device cuda：這裡沒有 CUDA GPU；請給 cpu，或不給"
    ),
    "must be greater than 0 and at most 1": ("必須大於 0 且不超過 1"),
    "--top_p and --top_k have no effect at --temperature 0; give for example --temperature 0.7": (
        "--top_p 與 --top_k 在 --temperature 0 時沒有作用；請給例如 --temperature 0.7"
    ),
    "line {line}: {tokens} token{tokens:s}, and the model was made for at most {limit}": (
        "第 {line} 行：{tokens} 個 token，而模型最多只能處理 {limit} 個"
    ),
    "{file}: there is no such file": ("{file}：沒有這個檔案"),
    "{file}: not a data file; use {suffixes}": ("{file}：不是資料檔；可用 {suffixes}"),
    "standard input": "標準輸入",
    "prompt {number} is not UTF-8: {prompt}": "第 {number} 個提示不是 UTF-8：{prompt}",
    "line {line}: {problem}": "第 {line} 行：{problem}",
    "line {line}: more than {limit} tokens, and the model was made for at most {limit}": (
        "第 {line} 行：超過 {limit} 個 token，而模型最多只能處理 {limit} 個"
    ),
    "{file}: holds no samples": ("{file}：沒有樣本"),
    "… and {count} more": ("…還有 {count} 項"),
    "{path}: neither a folder, nor an experiment in {experiments}, nor a hub name": (
        "{path}：不是資料夾，不是 {experiments} 裡的實驗，也不是 hub 上的名稱"
    ),
    "{leave} or Ctrl-D leaves, {reset} begins anew, Ctrl-C ends an answer": (
        "{leave} 或 Ctrl-D 離開，{reset} 重新開始，Ctrl-C 中止回答"
    ),
    "the conversation has grown to {tokens} token{tokens:s}, and with --max_new_tokens {new} the model has only "
    "{limit} positions; begin anew": (
        "對話已經有 {tokens} 個 token，加上 --max_new_tokens {new}，模型只有 {limit} 個位置；請重新開始"
    ),
    "{path}: has no test and no validation file; give the file itself": (
        "{path}：沒有 test 也沒有 validation 檔；請直接指定檔案"
    ),
    "loss {loss:.4f}, perplexity {perplexity:.2f} on {samples} sample{samples:s} ({tokens} answer token{tokens:s})": (
        "loss {loss:.4f}，perplexity {perplexity:.2f}，共 {samples} 筆樣本（{tokens} 個答案 token）"
    ),
    "highest losses:": ("loss 最高的樣本："),
    "line": ("行"),
    "input": ("輸入"),
    "all samples: {files} in {folder}": ("全部樣本：{folder} 裡的 {files}"),
    "exact match {exact:.1%}, ROUGE-1 {rouge1:.3f}, ROUGE-2 {rouge2:.3f}, ROUGE-L {rouge_l:.3f}, chrF {chrf:.3f}": (
        "完全相符 {exact:.1%}，ROUGE-1 {rouge1:.3f}，ROUGE-2 {rouge2:.3f}，ROUGE-L {rouge_l:.3f}，chrF {chrf:.3f}"
    ),
    "--merge has no effect: {path} has no adapter": ("--merge 沒有作用：{path} 沒有 adapter"),
    "adapter in PEFT format: {path}": ("PEFT 格式的 adapter：{path}"),
    "model in Hugging Face format: {path}": ("Hugging Face 格式的模型：{path}"),
    "{path}: is in PEFT format already; give --merge for a whole model": ("{path}：已經是 PEFT 格式；要完整的模型請給 --merge"),
    "--dtype has no effect on an adapter, which stays in float32; give --merge for a whole model": (
        "--dtype 對 adapter 沒有作用，adapter 維持 float32；要完整的模型請給 --merge"
    ),
    "{count} answer{count:s} in {file}": ("{file} 裡有 {count} 個回答"),
    "give prompts or --file, not both": ("請給提示或 --file，不要兩者都給"),
    "no prompt: give one as an argument, on standard input, or a file of lines or of {suffixes} as --file": (
        "沒有提示：請當作引數或從標準輸入給，或用 --file 指定每行一題的檔案或 {suffixes}"
    ),
    "compared on {count} prompt{count:s} of {file}:": ("以 {file} 的 {count} 個提示比較："),
    "  largest difference of a logit  {difference:.3g} (largest logit {largest:.3g}; rounding explains {tolerance:.3g})": (
        "  logit 最大差異  {difference:.3g}（最大的 logit {largest:.3g}；捨入可以解釋 {tolerance:.3g}）"
    ),
    "  same greedy answers            {same} of {all}; same next token at {tokens} of {positions} position{positions:s}": (
        "  貪婪回答相同    {all} 個中有 {same} 個；{positions} 個位置中有 {tokens} 個的下一個 token 相同"
    ),
    "{path}: is a whole model; there is no adapter to merge": ("{path}：是完整的模型；沒有 adapter 可以合併"),
    "{path}: the data that it was trained on are not known; give a .jsonl with prompts as --data": (
        "{path}：不知道它用什麼資料訓練；請用 --data 指定有提示的 .jsonl"
    ),
    "note: the adapter does not say on which weights it was trained; only names and shapes are compared": (
        "注意：adapter 沒有寫明用哪些權重訓練；只比較名稱與形狀"
    ),
    "DIFFERENT: the merged model does not compute what the adapter does; do not use it": (
        "不同：合併後的模型算出來的與 adapter 不同；請不要使用"
    ),
    "same: the merged model answers as the adapter does": ("相同：合併後的模型回答與 adapter 一樣"),
    "same but for rounding: where two tokens are almost equally likely, the other one may be chosen": (
        "除捨入外相同：兩個 token 機率幾乎一樣時，可能選到另一個"
    ),
    "--hf_model_id {path}: this is an adapter; give its base model here and the adapter as "
    "--restore_config, with --peft lora": (
        "--hf_model_id {path}：這是 adapter；這裡請給它的基礎模型，adapter 請用 --restore_config 指定，並加上 --peft lora"
    ),
    "loss, perplexity and answers of a model on a data file": ("模型在資料檔上的 loss、perplexity 與回答"),
    "answers of a model to prompts": ("模型對提示的回答"),
    "a conversation with a model in the terminal": ("在終端機與模型對話"),
    "an adapter into its base model, with a comparison of the two": ("把 adapter 合併進基礎模型，並比較兩者"),
    "a checkpoint or model in the format of other tools": ("把檢查點或模型轉成其他工具的格式"),
    "--optimizer_states {states} has no effect with --peft lora: adapters are small, and stay in float32": (
        "--optimizer_states {states} 搭配 --peft lora 沒有作用：adapter 很小，一律用 float32"
    ),
    "1 without --peft lora": "1（不用 --peft lora 時）",
    "of full fine-tuning: gradients and moments in fp32 or bf16, moments in 8bit": (
        "全參數微調：梯度與動量用 fp32 或 bf16，動量用 8bit"
    ),
    "tokens of a packed row; left out: micro_batch_size x seq_length": (
        "打包列的 token 數；省略時為 micro_batch_size × seq_length"
    ),
    "products of linear layers in fp8: faster, a little less exact": "線性層的矩陣乘法用 fp8：較快，精確度略降",
    "recompute in backward; selective: cheap or wide; full: all; auto: the least": (
        "反向傳播時重新計算；selective：便宜或寬的部分；full：全部；auto：不得不算的"
    ),
    "A conversation with a model.": "與模型對話。",
    "All experiments of a folder, the latest first.": "資料夾裡的所有實驗，最新的在前。",
    "Answers prompts; one prompt streams.": "回答提示；只有一個提示時逐字顯示。",
    "How an experiment is, or how it ended.": "實驗目前的狀況，或如何結束。",
    "How well a model answers a data file.": "模型回答資料檔的表現。",
    "Makes an experiment save and stop.": "讓實驗存檔並停止。",
    "Merges an adapter and compares before and after.": "合併 adapter，並比較合併前後。",
    "What a file or folder with a model holds.": "含有模型的檔案或資料夾裡有什麼。",
    "What an experiment has printed.": "實驗印出的內容。",
    "What would stop a run here, and what to do about it.": "什麼會使這裡的執行失敗，以及該怎麼辦。",
    "Writes a model in the format of other tools.": "把模型寫成其他工具的格式。",
    "0: the likeliest token; more: less likely ones too": "0：機率最高的 token；越大越可能選到其他的",
    "JSON Lines file for the answers; left out: the terminal": "存放回答的 JSON Lines 檔；不給：終端機",
    "a checkpoint, an experiment, an adapter, a model folder or a GGUF file": "檢查點、實驗、adapter、模型資料夾或 GGUF 檔",
    "a data file as for training, or a data folder, of which test is taken": "與訓練相同的資料檔，或資料夾（取其中的 test）",
    "an experiment, a checkpoint, an adapter, a model folder, a GGUF file, or a name on the hub": (
        "實驗、檢查點、adapter、模型資料夾、GGUF 檔，或 hub 上的名稱"
    ),
    "answers at once": "同時產生的回答數",
    "decides the choice of tokens": "決定 token 的選取",
    "do not wait until it has saved": "不等它存檔",
    "everything that this rank printed, warnings of libraries too": "這個 rank 印出的所有內容，包含函式庫的警告",
    "folder for the merged model in Hugging Face format": "存放合併後模型的資料夾（Hugging Face 格式）",
    "folder for the results; left out: evaluation/MODEL-DATA": "存放結果的資料夾；不給：evaluation/MODEL-DATA",
    "folder or file of Hugging Face, PEFT, NeMo, Megatron, GGUF or this command": (
        "Hugging Face、PEFT、NeMo、Megatron、GGUF 或本指令的資料夾或檔案"
    ),
    "folder to write; left out: beside it, with the format in its name": "要寫入的資料夾；不給：在旁邊，名稱加上格式",
    "go on until it ends; Ctrl-C ends only the watching": "持續顯示到結束；Ctrl-C 只會停止觀看",
    "hf: Hugging Face, adapters in PEFT format; nemo: NeMo 2": "hf：Hugging Face，adapter 用 PEFT 格式；nemo：NeMo 2",
    "it computes in; left out: bfloat16 on a GPU, else float32": "計算用的型別；不給：GPU 上用 bfloat16，否則 float32",
    "list every tensor": "列出每個張量",
    "longest answer, in tokens": "回答的最大長度，以 token 計",
    "longest compared answer, in tokens (default: 64)": "比較的回答最大長度，以 token 計（預設：64）",
    "look at nodes of the cluster too, in an allocation of five minutes": "也檢查叢集的節點，會配置五分鐘",
    "merge the adapter into its base; to check it as well: finetune merge": (
        "把 adapter 合併進基礎模型；要同時檢查請用 finetune merge"
    ),
    "name of the experiment; left out: the latest": "實驗名稱；不給：最新的",
    "nodes to look at (default: 2)": "要檢查的節點數（預設：2）",
    "of a model that does not say how it was trained: its system message": "用於沒有訓練記錄的模型：系統訊息",
    "of a model that does not say how it was trained: text with {{input}} and {{output}}": (
        "用於沒有訓練記錄的模型：含 {{input}} 與 {{output}} 的文字"
    ),
    "of the weights; left out: the base model's": "權重的型別；不給：與基礎模型相同",
    "one JSON object instead of text": "輸出一個 JSON 物件，而不是文字",
    "one JSON object instead of text, with every tensor": "輸出一個含所有張量的 JSON 物件，而不是文字",
    "only loss and perplexity, which is much faster": "只算 loss 與 perplexity，快很多",
    "only the likeliest tokens of this probability together": "只取合計達到此機率的最可能 token",
    "only this many of the likeliest tokens; 0: all": "只取這麼多個最可能的 token；0：全部",
    "only this many samples, from the beginning": "只取開頭這麼多個樣本",
    "prompts to compare on (default: 16)": "用來比較的提示數（預設：16）",
    "prompts to compare on; left out: the run's test split": "用來比較的提示；不給：該次執行的 test",
    "questions: data as for training, or a text file with one on each line": "問題：與訓練相同的資料，或每行一題的文字檔",
    "questions; left out: --file, or each line of standard input is one": "問題；不給：用 --file，或標準輸入每行一題",
    "the model that it was trained from; left out: the one it names": "訓練時的基礎模型；不給：它所記錄的那個",
    "where it runs; left out: a GPU where there is one": "在哪裡執行；不給：有 GPU 就用 GPU",
    "{file}: the architecture is {found!r}; only 'llama' can be read": "{file}：架構是 {found!r}；只能讀取 'llama'",
    "{file}: is one of {count} parts; put them together first, by llama.cpp's llama-gguf-split --merge": (
        "{file}：是 {count} 個部分之一；請先用 llama.cpp 的 llama-gguf-split --merge 合併"
    ),
    "{file}: {name} is {value!r}, which a Llama does not have": "{file}：{name} 是 {value!r}，Llama 沒有這項設定",
    "{file}: {layers} layers with heads of {size} do not fit {count} tensors": (
        "{file}：{layers} 層、頭的大小 {size}，與 {count} 個張量不符"
    ),
    "{file}: holds weights of {types}, which cannot be read": "{file}：含有 {types} 的權重，無法讀取",
    "{file}: holds weights of {types}, and reading these needs the gguf package: pip install gguf": (
        "{file}：含有 {types} 的權重，讀取需要 gguf 套件：pip install gguf"
    ),
    "{file}: its tokenizer ({kind}, {rule}) is not Llama 3's, which alone can be read from a GGUF file; give a folder or hub "
    "name with the model's config.json and tokenizer as --base": (
        "{file}：它的 tokenizer（{kind}、{rule}）不是 Llama 3 的，而 GGUF 檔只能讀出 Llama 3 的；"
        "請用 --base 指定有該模型 config.json 與 tokenizer 的資料夾或 hub 名稱"
    ),
    "{file}: the tokenizer cannot be read: {error}": "{file}：無法讀取 tokenizer：{error}",
    "{file}: {name} is {value!r}, but must be a positive number": "{file}：{name} 是 {value!r}，但必須是正數",
    "{file}: {name} ({found}) is not the RoPE scaling of Llama 3.1 or 3.2": (
        "{file}：{name}（{found}）不是 Llama 3.1 或 3.2 的 RoPE 縮放"
    ),
    "--hf_model_id {path}: is a GGUF file; write it as a model folder first, by finetune export {path} FOLDER, and give that": (
        "--hf_model_id {path}：是 GGUF 檔；請先用 finetune export {path} FOLDER 寫成模型資料夾，再給該資料夾"
    ),
    # Least memory
    "--least_memory: each process keeps {gib:.1f} GiB in host memory as well": (
        "--least_memory：每個行程另外在主機記憶體中保留 {gib:.1f} GiB"
    ),
    "--least_memory needs {flag} {value}": "--least_memory 需要 {flag} {value}",
    "LoRA in the least GPU memory: recompute in pieces, keep the rest in host memory; slower": (
        "以最少的 GPU 記憶體做 LoRA：分段重新計算，其餘放在主機記憶體；較慢"
    ),
}
