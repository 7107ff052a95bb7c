"""Traditional Chinese (Taiwan) for every message of `finetuning.i18n`: English template -> Chinese template.

In the order of the source files. Terms that engineers in Taiwan say in English stay English: token, GPU, LoRA, batch.
"""

MESSAGES: dict[str, str] = {
    # finetuning/cli.py: groups and flags
    "Basic execution": "基本執行選項",
    "where it runs: torchrun on this machine, or a Slurm job": "在哪裡執行：本機的 torchrun，或 Slurm 工作",
    "name of the experiment; its folder is experiments/NAME": "實驗名稱；資料夾是 experiments/名稱",
    "Slurm": "Slurm",
    "Slurm account": "Slurm 帳戶",
    "Slurm partition": "Slurm partition",
    "container image of the job": "工作使用的容器映像檔",
    "Hardware": "硬體",
    "number of machines": "機器數量",
    "GPUs per machine; without CUDA, CPU processes": "每台機器的 GPU 數；沒有 CUDA 時是 CPU 行程數",
    "Model and data": "模型與資料",
    "Hugging Face model id, or a local folder in Hugging Face format (required)": (
        "Hugging Face 模型 ID，或 Hugging Face 格式的本機資料夾（必填）"
    ),
    "NeMo checkpoint to start from": "作為起點的 NeMo 檢查點",
    "folder with training.jsonl, validation.jsonl and test.jsonl, or one raw .jsonl (required)": (
        "內有 training.jsonl、validation.jsonl、test.jsonl 的資料夾，或單一原始 .jsonl 檔（必填）"
    ),
    "Hugging Face token; also read from HF_TOKEN or `hf auth login`; not needed for a local folder": (
        "Hugging Face token；也會讀取 HF_TOKEN 或 `hf auth login` 的登入；使用本機資料夾時不需要"
    ),
    "Training": "訓練",
    "optimizer steps; left out: one epoch": "最佳化器步數；不給則為一個 epoch",
    "samples per optimizer step; a multiple of micro_batch_size x data parallel size": (
        "每個最佳化器步的樣本數；須為 micro_batch_size × 資料平行數的倍數"
    ),
    "a packed row holds at most micro_batch_size x seq_length tokens": (
        "每個打包列最多放 micro_batch_size × seq_length 個 token"
    ),
    "Model parallelism": "模型平行化",
    "tensor parallel degree": "張量平行數",
    "pipeline parallel degree": "管線平行數",
    "context parallel degree": "上下文平行數",
    "Samples": "樣本",
    "longest sample in tokens; a longer one is refused, never cut silently": (
        "單一樣本的 token 上限；超過的樣本會被拒絕，絕不會默默截斷"
    ),
    r"text with {input} and {output} instead of the chat template; \n is a new line": (
        r"含有 {input} 與 {output} 的文字，用來取代 chat template；\n 代表換行"
    ),
    "system message put before every sample": "放在每個樣本之前的 system 訊息",
    "What is trained": "訓練範圍",
    "none: all weights; lora: low-rank adapters": "none：全部權重；lora：低秩 adapter",
    "rank of the adapters": "adapter 的 rank",
    "adapters are scaled by alpha / rank": "adapter 的縮放倍率是 alpha / rank",
    "comma-separated linear layers that get adapters": "要加上 adapter 的線性層，以逗號分隔",
    "Optimizer": "最佳化器",
    "peak learning rate; left out: 5e-6, with LoRA 1e-4": "學習率的最高值；不給則為 5e-6，LoRA 為 1e-4",
    "learning rate at the end of the cosine": "餘弦排程結束時的學習率",
    "steps of linear warm-up; left out: a tenth of the steps, at most 50": (
        "線性 warm-up 的步數；不給則為總步數的十分之一，最多 50"
    ),
    "decay of weight matrices": "權重矩陣的 weight decay",
    "AdamW beta 1": "AdamW 的 beta 1",
    "AdamW beta 2": "AdamW 的 beta 2",
    "AdamW epsilon": "AdamW 的 epsilon",
    "largest global gradient norm; 0: no clipping": "全域梯度範數的上限；0 表示不裁剪",
    "decides sample order and adapter initialisation": "決定樣本順序與 adapter 的初始值",
    "Memory and speed": "記憶體與速度",
    "full: recompute each block in the backward pass, less memory, slower": (
        "full：反向傳播時重新計算每個 block，較省記憶體、較慢"
    ),
    "torch.compile of each block; auto: with CUDA only": "以 torch.compile 編譯每個 block；auto：只在有 CUDA 時",
    "Evaluation, checkpoints and logs": "評估、檢查點與紀錄",
    "steps between validations; left out: ten in the run": "每幾步驗證一次；不給則整次執行共十次",
    "steps between checkpoints; left out: after each validation; 0: none": (
        "每幾步存一次檢查點；不給則在每次驗證後；0 表示不存"
    ),
    "newest checkpoints to keep, besides the best one": "除了最佳的之外，保留幾個最新的檢查點",
    "answers generated before and after training": "訓練前後各生成幾個回答",
    "longest generated answer, in tokens": "生成的回答最多幾個 token",
    "checkpoint whose weights to start from, e.g. experiments/NAME/checkpoints/step=000100": (
        "以哪個檢查點的權重為起點，例如 experiments/名稱/checkpoints/step=000100"
    ),
    "resume although data, template, batch size or sequence length changed": (
        "即使資料、模板、批次大小或序列長度改變，仍接續訓練"
    ),
    "also log to this Weights & Biases project (needs the wandb package)": (
        "同時記錄到此 Weights & Biases 專案（需要 wandb 套件）"
    ),
    "also log to this MLflow server (needs the mlflow package)": "同時記錄到此 MLflow 伺服器（需要 mlflow 套件）",
    "folder that holds the experiments": "放置各實驗的資料夾",
    "language of the messages; left out: the locale's": "訊息的語言；不給則依系統語系",
    "This command": "本指令",
    "YAML file of settings; flags override it": "YAML 設定檔；指令列參數優先",
    "check everything, print the resolved run and stop": "檢查一切、印出完整設定後結束",
    "show this help and stop": "顯示這份說明後結束",
    "show the version and stop": "顯示版本後結束",
    " (default: {value})": "（預設：{value}）",
    # finetuning/cli.py: the rest
    'Fine-tunes Llama 3.1 on a folder of {{"input": …, "output": …}} JSONL.': (
        '以內含 {{"input": …, "output": …}} JSONL 的資料夾微調 Llama 3.1。'
    ),
    "Exit codes: 0 finished, 1 failed, 2 wrong input (nothing was started), 75 stopped and saved,\n"
    "130 interrupted before the start.": (
        "結束碼：0 完成，1 失敗，2 輸入有誤（未啟動任何工作），75 已停止並存檔，\n130 在啟動前被中斷。"
    ),
    "usage: finetune VERB …": "用法：finetune 動詞 …",
    "fine-tune a model; `finetune train --help` lists the flags": "微調模型；參數請見 `finetune train --help`",
    "Stopped. Nothing was started.": "已停止。未啟動任何工作。",
    "Nothing was started. {count} to mend:": "未啟動任何工作。有 {count} 處要修正：",
    "--config {path}: hf_token does not belong in a file; set HF_TOKEN or run `hf auth login`": (
        "--config {path}：hf_token 不該寫在檔案裡；請設定 HF_TOKEN，或執行 `hf auth login`"
    ),
    # finetuning/config.py
    "{source}: unknown setting '{name}'; known settings: {known}": "{source}：沒有「{name}」這個設定；可用的設定：{known}",
    "--{name} is required": "必須給 --{name}",
    "{source}: {name} is {value!r}, but must be {type}": "{source}：{name} 是 {value!r}，但必須是{type}",
    "{source}: {name} is {value!r}, but must be one of {choices}": "{source}：{name} 是 {value!r}，但必須是 {choices} 其中之一",
    "--config {path}: there is no such file": "--config {path}：沒有這個檔案",
    "--config {path}: cannot be read: {reason}": "--config {path}：無法讀取：{reason}",
    "--config {path}: not valid YAML: {error}": "--config {path}：不是有效的 YAML：{error}",
    "--config {path}: must hold 'name: value' lines named like the flags": (
        "--config {path}：每行必須是 name: value，name 與指令列參數同名"
    ),
    "command line": "指令列",
    "a whole number": "整數",
    "a number": "數字",
    "true or false": "true 或 false",
    "text": "文字",
    "a list of names": "名稱清單",
    # finetuning/data/configure.py
    "{path}: holds no samples": "{path}：沒有任何樣本",
    "--dataset_path {path}: there is no such folder": "--dataset_path {path}：沒有這個資料夾",
    "--dataset_path {path}: needs training.jsonl (and validation.jsonl, test.jsonl), or exactly one other .jsonl "
    "file to be split 98/1/1; found {found}": (
        "--dataset_path {path}：需要 training.jsonl（以及 validation.jsonl、test.jsonl），或恰好一個其他 .jsonl 檔，"
        "將以 98/1/1 切分；目前找到 {found}"
    ),
    "{path}: {count} samples cannot be split into training, validation and test; 3 are needed": (
        "{path}：{count} 個樣本不夠切成訓練、驗證與測試，至少要 3 個"
    ),
    "{file}:{line}: {tokens} tokens ({prompt} of them prompt) do not fit --seq_length {seq_length}; the answer would be cut; "
    "shorten it or give --seq_length {needed} or more": (
        "{file}:{line}：{tokens} 個 token（其中 prompt {prompt} 個）超過 --seq_length {seq_length}，回答會被截斷；請縮短，"
        "或給 --seq_length {needed} 以上"
    ),
    "{file}: and {rest} more lines like these": "{file}：另外還有 {rest} 行有類似問題",
    # finetuning/data/jsonl.py
    "not UTF-8 (byte {position}); save the file as UTF-8": "不是 UTF-8（第 {position} 個位元組）；請以 UTF-8 存檔",
    "not valid JSON ({message} at column {column}): {excerpt}": "不是有效的 JSON（第 {column} 欄：{message}）：{excerpt}",
    "must be a JSON object with 'input' and 'output': {excerpt}": "必須是含有 'input' 與 'output' 的 JSON 物件：{excerpt}",
    "field '{name}' is missing; found {found}": "缺少欄位 '{name}'；目前有 {found}",
    "field '{name}' must be text, but is {value}": "欄位 '{name}' 必須是文字，但現在是 {value}",
    "the answer ('output') is empty": "回答（'output'）是空的",
    # finetuning/data/template.py
    "{file}: cannot read the tokenizer: {error}": "{file}：無法讀取 tokenizer：{error}",
    "the tokenizer's chat template depends on the text itself (line {line}); give --prompt_template": (
        "tokenizer 的 chat template 會隨文字內容改變（第 {line} 行）；請給 --prompt_template"
    ),
    "{path}: transformers cannot read the tokenizer: {error}": "{path}：transformers 無法讀取 tokenizer：{error}",
    "{path}: the tokenizer has no chat template (a base model?); use an -Instruct model, or give "
    "--prompt_template, for example '{example}'": (
        "{path}：tokenizer 沒有 chat template（是 base 模型嗎？）；請改用 -Instruct 模型，或給 --prompt_template，"
        "例如 '{example}'"
    ),
    "{path}: the chat template cannot be used ({error}); mend it, or give --prompt_template": (
        "{path}：chat template 無法使用（{error}）；請修正，或給 --prompt_template"
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
    # finetuning/model/config.py
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
    "{file}: the llama3 RoPE scaling has no {name}": "{file}：llama3 的 RoPE 縮放缺少 {name}",
    "{file}: {heads} attention heads must be a multiple of {key_value_heads} key/value heads and divide the hidden size "
    "{hidden}": (
        "{file}：{heads} 個 attention head 必須是 {key_value_heads} 個 key/value head 的倍數，且能整除 hidden size {hidden}"
    ),
    # finetuning/checkpoint
    "{folder}: {name} is {value!r}; only {supported!r} is supported": "{folder}：{name} 是 {value!r}；只支援 {supported!r}",
    "{folder}: {name} is {found!r}, but the run asks for {wanted!r}; give the same value": (
        "{folder}：{name} 是 {found!r}，但這次要求的是 {wanted!r}；請給相同的值"
    ),
    "{folder}: holds no adapter {name}": "{folder}：沒有 adapter {name}",
    "{file}: not an index of weight files; download it again": "{file}：不是權重檔的索引；請重新下載",
    "nothing": "無",
    "{path}: weight file {missing} is missing (other weight files: {other}); weights must be in safetensors format": (
        "{path}：缺少權重檔 {missing}（其他權重檔：{other}）；權重必須是 safetensors 格式"
    ),
    "{file}: cannot read the weights: {error}": "{file}：無法讀取權重：{error}",
    "{name} should be {wanted}, found {found}": "{name} 應為 {wanted}，實際為 {found}",
    "{path}: the weights do not fit config.json: {shown}": "{path}：權重與 config.json 不符：{shown}",
    "{path}: not a complete checkpoint (no readable {file})": "{path}：不是完整的檢查點（沒有可讀的 {file}）",
    "{path}: not a complete checkpoint ({file} is missing or has the wrong size)": (
        "{path}：不是完整的檢查點（{file} 不存在或大小不對）"
    ),
    # finetuning/failures.py, finetuning/status.py
    "lower --seq_length or --micro_batch_size (a row holds seq_length x micro_batch_size tokens)": (
        "調低 --seq_length 或 --micro_batch_size（每列放 seq_length × micro_batch_size 個 token）"
    ),
    "more GPUs (weights and optimizer are spread over them)": "更多 GPU（權重與最佳化器狀態會分散到各 GPU）",
    "Out of memory. What helps, in this order: {advice}": "記憶體不足。依序可以試：{advice}",
    "{file}: not a status; remove the file, it is written anew": "{file}：不是狀態檔；請刪除，程式會重新寫入",
    # finetuning/launch/check.py
    "must be 1 or more": "必須大於等於 1",
    "must be 0 or more": "必須大於等於 0",
    "must be greater than 0": "必須大於 0",
    "must be at least 0 and less than 1": "必須大於等於 0 且小於 1",
    "must be 2 or more": "必須大於等於 2",
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
    "--{name} has no effect without --peft lora": "沒有 --peft lora 時，--{name} 不起作用",
    "--min_lr {minimum} is above the peak learning rate {peak}": "--min_lr {minimum} 高於學習率的最高值 {peak}",
    "--{flag} needs a package that is not installed: pip install {package}": (
        "--{flag} 需要的套件尚未安裝：pip install {package}"
    ),
    "--tensor_model_parallel_size {degree}: must divide {heads} attention heads and {key_value_heads} key/value "
    "heads; with {world} GPUs use {choices}": (
        "--tensor_model_parallel_size {degree}：必須能整除 {heads} 個 attention head 與 {key_value_heads} 個 key/value head；"
        "{world} 個 GPU 可用 {choices}"
    ),
    "--pipeline_model_parallel_size {degree}: the model has only {layers} layers": (
        "--pipeline_model_parallel_size {degree}：模型只有 {layers} 層"
    ),
    "--lora_rank {rank}: must be at most the model's hidden size, {hidden}": (
        "--lora_rank {rank}：不能超過模型的 hidden size，{hidden}"
    ),
    "{nodes} x {gpus} = {world} GPUs cannot be divided by tensor {tensor} x pipeline {pipeline} x context {context} "
    "= {degree}; the product must be one of {choices}": (
        "{nodes} × {gpus} = {world} 個 GPU 無法被張量 {tensor} × 管線 {pipeline} × 上下文 {context} = {degree} 整除；"
        "乘積必須是 {choices} 其中之一"
    ),
    "--global_batch_size {batch}: must be a multiple of micro_batch_size {micro} x data parallel {data} = {unit}; "
    "nearest: {nearest}": (
        "--global_batch_size {batch}：必須是 micro_batch_size {micro} × 資料平行 {data} = {unit} 的倍數；最接近的是 {nearest}"
    ),
    "--num_gpus {asked}: without a GPU it counts CPU processes, and this machine has {cores} cores; give {limit} or less": (
        "--num_gpus {asked}：沒有 GPU 時這是 CPU 行程數，而本機有 {cores} 個核心；請給 {limit} 以下"
    ),
    "--num_gpus {asked}: this machine has {found}; give --num_gpus {found} (and a --global_batch_size that is a "
    "multiple of micro_batch_size x {found})": (
        "--num_gpus {asked}：本機只有 {found} 個；請給 --num_gpus {found}"
        "（--global_batch_size 則須為 micro_batch_size × {found} 的倍數）"
    ),
    "--executor slurm: this version starts jobs on one machine only; inside an allocation, use --executor local": (
        "--executor slurm：這個版本只能在單一機器上啟動；已在配置好的節點內時，請用 --executor local"
    ),
    "--num_nodes {nodes}: --executor local runs on one machine; give --num_nodes 1": (
        "--num_nodes {nodes}：--executor local 只在一台機器上執行；請給 --num_nodes 1"
    ),
    "tensor, pipeline and context parallel are not available in this version; give 1 for each, and the "
    "{world} GPUs work data parallel with sharded parameters": (
        "這個版本還沒有張量、管線與上下文平行；請各給 1，{world} 個 GPU 會以資料平行、參數分片的方式運作"
    ),
    "--nemo_model {path}: NeMo checkpoints cannot be read in this version; give the model in Hugging Face format "
    "as --hf_model_id": "--nemo_model {path}：這個版本無法讀取 NeMo 檢查點；請以 --hf_model_id 給 Hugging Face 格式的模型",
    "--restore_config {path}: there is no such folder": "--restore_config {path}：沒有這個資料夾",
    # finetuning/launch/command.py
    "cannot write to {folder}: {reason}": "無法寫入 {folder}：{reason}",
    "experiment {name} is running already (see {folder}); wait for it, or give another --experiment name": (
        "實驗 {name} 正在執行（見 {folder}）；請等它結束，或換一個 --experiment 名稱"
    ),
    "starting {count} processes …": "啟動 {count} 個行程 …",
    "stopped; run the same command to go on": "已停止；執行相同的指令即可接續",
    "Rank {rank} failed: {reason}": "rank {rank} 失敗：{reason}",
    "a worker process was killed, or could not start (out of memory? see the last lines of {log})": (
        "有工作行程被終止，或無法啟動（記憶體不足？請看 {log} 的最後幾行）"
    ),
    "log: {log}": "紀錄檔：{log}",
    "experiment {name} has finished: {done} of {max_steps} steps; its result is in {export}. To train on, give a "
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
    "--warmup_steps {warmup}: must be less than the {max_steps} steps of the run, or the learning rate never reaches "
    "its peak": ("--warmup_steps {warmup}：必須小於總步數 {max_steps}，否則學習率永遠到不了最高值"),
    "--seq_length {given}: the model was made for at most {limit} positions": (
        "--seq_length {given}：這個模型最多只支援 {limit} 個位置"
    ),
    "{file}: cannot be read or written: {reason}": "{file}：無法讀取或寫入：{reason}",
    "no CUDA GPU here: --num_gpus {count} means {count} CPU processes, in float32": (
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
    "experiment {name} has done {done} steps already; give --max_steps {done} or more, or another --experiment name": (
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
    "saved by {before} data-parallel ranks, goes on with {now}: the losses agree to rounding, not to the last bit": (
        "存檔時有 {before} 個資料平行 rank，現在是 {now} 個：loss 在捨入誤差內一致，但不是逐位元相同"
    ),
    "the schedule changes from {planned} to {max_steps} steps: the learning rate follows the new cosine, the order "
    "of the samples stays": "排程由 {planned} 步改為 {max_steps} 步：學習率依新的餘弦曲線，樣本順序不變",
    "--restore_config is not used: the experiment's own checkpoint comes first": (
        "未使用 --restore_config：以實驗自己的檢查點優先"
    ),
    "{count:.0f} minutes": "{count:.0f} 分鐘",
    "{count:.0f} hours": "{count:.0f} 小時",
    "{count:.0f} days": "{count:.0f} 天",
    # finetuning/launch/screens.py
    "all weights": "全部權重",
    "model": "模型",
    "{name} · Llama, {layers} layers · {total} parameters, {trained} trained ({method})": (
        "{name} · Llama，{layers} 層 · 參數 {total}，訓練其中 {trained}（{method}）"
    ),
    "data": "資料",
    "{split}: {samples:,} samples, {tokens:,} tokens, {answers:,} of them answers, longest {longest:,} · {file}": (
        "{split}：{samples:,} 個樣本，{tokens:,} 個 token（回答占 {answers:,}），最長 {longest:,} · {file}"
    ),
    "example": "範例",
    "line {line} · trained in brackets: ": "第 {line} 行 · 括號內是訓練的部分：",
    "layout": "配置",
    "{world} {kind} = data parallel {data} · {samples} samples per step in {rows} packed rows, about {tokens:,} tokens": (
        "{world} 個 {kind} = 資料平行 {data} · 每步 {samples} 個樣本，打包成 {rows} 列，約 {tokens:,} 個 token"
    ),
    "GPUs": "GPU",
    "CPU processes": "CPU 行程",
    "schedule": "排程",
    "{steps} steps = {epochs:.2f} epochs · learning rate {peak:g} after {warmup} warm-up steps, cosine to {low:g}": (
        "{steps} 步 = {epochs:.2f} 個 epoch · 學習率經 {warmup} 步 warm-up 到 {peak:g}，再以餘弦降到 {low:g}"
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
    "test {loss:.4f} (perplexity {perplexity:.1f}, {samples} samples)": (
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
    "test: loss {loss:.4f}, perplexity {perplexity:.2f} on {samples} samples": (
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
    "step {step}: validation loss {loss:.4f} (perplexity {perplexity:.2f}, {samples} samples)": (
        "第 {step} 步：驗證 loss {loss:.4f}（困惑度 {perplexity:.2f}，{samples} 個樣本）"
    ),
    "step {step}: checkpoint saved in {seconds:.1f} s": "第 {step} 步：檢查點已存，費時 {seconds:.1f} 秒",
    "step {step}: the loss is {loss} and the gradient norm {norm}. The step was not applied; the last checkpoint "
    "is untouched. Lower --lr, keep clipping on (--clip_grad 1.0), and look at the samples of this step": (
        "第 {step} 步：loss 是 {loss}，梯度範數是 {norm}。這一步沒有套用，最後的檢查點不受影響。請調低 --lr，保持梯度裁剪"
        "（--clip_grad 1.0），並檢查這一步的樣本"
    ),
}
