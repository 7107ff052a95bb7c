"""What is taken for a secret, and what the refusal says."""

from typing import Any

import pytest

from finetuning.config.secrets import SECRET_NAME, find_secret, is_secret, refuse_secrets
from finetuning.errors import InputError

pytestmark = pytest.mark.unit

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
STANDS = "which would stand in run.yaml, in job scripts and in process lists"


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SECRET",
        "MLFLOW_TRACKING_PASSWORD",
        "github_token",
        "NGC_KEY",
        "PGPASSWORD",
        "OPENAI_KEY",
        "DB_PASS",
        "MYSQL_PWD",
        "GITHUB_PAT",
        "REDISCLI_AUTH",
        "AZURE_STORAGE_CONNECTION_STRING",
        "SSHPASS",
        "APIKEY",
        "api_key_2",
        "PGPASS",
        "ROOT_PW",
        "FOO_CREDS",
        "AZURE_STORAGE_SAS",
        "STRIPE_SK",
        "SLACK_WEBHOOK_URL",
    ],
)
def test_a_variable_that_holds_a_secret_is_known_by_its_name(name: str) -> None:
    assert SECRET_NAME.search(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "PATH",
        "PWD",
        "OLDPWD",
        "KEYBOARD",
        "SSH_AUTH_SOCK",
        "MONKEY_BUSINESS",
        "GIT_ASKPASS",
        "HF_TOKEN_PATH",
        "MAX_TOKENS",
        "BYPASS",
        "COMPASS",
        "PWM",
        "TASK",
        "DISK",
        "SASL_MECHANISM",
        "NCCL_IB_PKEY",
        "SSH_KEY_PATH",
    ],
)
def test_an_ordinary_variable_is_not_taken_for_a_secret(name: str) -> None:
    assert not SECRET_NAME.search(name)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("https://me:word@host/x", "an address with a password"),
        ("https://me:wo/rd@host", "an address with a password"),
        ("https://me:12345@host", "an address with a password"),
        ("HTTPS_PROXY=http://user:pass@proxy:3128", "an address with a password"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "what looks like a token or key"),
        ("X=sk-proj-abcdefghijklmnopqrst", "what looks like a token or key"),
        ("git clone https://ghp_abcdefghij0123456789@github.com/a/b", "what looks like a token or key"),
        ("wandb login 0123456789abcdef0123456789abcdef01234567", "what looks like a token or key"),
        ("export WANDB_API_KEY=abc", "a value of WANDB_API_KEY"),
        ("export A=1; DB_PASS='a b'", "a value of DB_PASS"),
        ("--export=ALL,NGC_KEY=abc", "a value of NGC_KEY"),
        ("docker login --password abc", "a value of password"),
        ("https://host/?a=1&api_key=abc", "a value of api_key"),
        ("curl -H 'Authorization: Bearer abc' host", "a header with a key"),
        ('curl -H "X-Api-Key: abc" host', "a header with a key"),
        ("curl -s -u me:abc https://host", "a user with a password"),
        ("curl --user='me:abc' https://host", "a user with a password"),
        ("curl -u $USER:abc https://host", "a user with a password"),
        ("docker login -u me -p abc host", "a user with a password"),
        ("sshpass -pabc ssh host", "a user with a password"),
        ("sshpass -p 'abc' ssh host", "a user with a password"),
        ("mysql -pabc -u me", "a user with a password"),
        ("aws configure set aws_secret_access_key abc", "a user with a password"),
        ("echo abc | docker login -u me --password-stdin", "a user with a password"),
        ("https://a1b2c3d4e5f6a7b8c9d0@mlflow.host", "an address with a password"),
    ],
)
def test_a_secret_in_a_text_is_found_and_not_shown(text: str, what: str) -> None:
    assert find_secret(text) == what


@pytest.mark.parametrize(
    "text",
    [
        "https://host:5000/x@y",
        "http://host:8080",
        "http://[::1]:80/a@b",
        "ssh://git@host/x",
        "nvcr.io#nvidia/nemo:dev",
        "export WANDB_API_KEY=$(cat ~/.key)",
        'export WANDB_API_KEY="$(<~/.key)"',
        "export A_KEY=$KEY",
        "http://me:$PASS@proxy",
        'curl -H "Authorization: Bearer $TOKEN"',
        "curl -u me:$PASS https://host",
        "curl https://host && docker run -u 1000:1000 image",
        "/data/max_tokens=8192/",
        "/scratch/secret=1/x",
        "/data/hf_llama",
        "task-abcdefghijklmnopqrstuvwxyz",
        "--gres=gpu:8 --mail-user=a@b.c",
        "module load cuda/12; PATH=/a:$PATH",
        "export PGPASSWORD=",
        "source ~/.secrets/wandb.sh",
        "sort --key=2 file",
        "https://organization@dev.host/x",
        "docker run -p 8080:80 image",
        "docker login -u me -p $PASS host",
        'echo "$PASS" | docker login -u me --password-stdin',
        "cat ~/.pass | docker login -u me --password-stdin",
        "sshpass -f ~/.pass ssh host",
        "sshpass -p $PASS ssh host",
        "mysql -p -u me",
        "mkdir -p /scratch/login",
        "aws configure set region eu-1",
    ],
)
def test_what_only_names_a_secret_or_looks_a_little_like_one_is_none(text: str) -> None:
    assert find_secret(text) is None


def test_in_a_system_prompt_password_is_a_word_like_others_but_a_token_is_one_all_the_same() -> None:
    refuse_secrets({"system_prompt": "If asked for password=…, say: password: no"})
    assert refused("system_prompt", f"my key is {TOKEN}") == (
        f"--system_prompt holds what looks like a token or key, {STANDS}; write a placeholder instead; the model would "
        "learn it, too"
    )


def test_a_setting_that_holds_one_is_named_with_the_way_that_works() -> None:
    assert refused("mlflow_tracking_uri", "https://me:word@host") == (
        f"--mlflow_tracking_uri holds an address with a password, {STANDS}; give the address without it, and set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write them to ~/.mlflow/credentials, which jobs can read too"
    )
    assert refused("container_image", "docker://me:word@registry/a") == (
        f"--container_image holds an address with a password, {STANDS}; give the image without it, and log in to the "
        "registry: ~/.config/enroot/.credentials or `apptainer registry login`"
    )
    assert refused("environment", "A=1 WANDB_API_KEY=abc") == (
        f"--environment holds a value of WANDB_API_KEY, {STANDS}; log in once with the tool that needs it (wandb login, hf "
        """auth login, ~/.netrc), or read it from a file of yours: --setup 'export NAME="$(cat ~/.name)"'"""
    )


def test_settings_of_the_wrong_type_are_looked_at_as_well() -> None:
    assert "--environment holds a value of WANDB_API_KEY" in refused("environment", {"WANDB_API_KEY": "abc"})
    assert "--mounts holds what looks like a token or key" in refused("mounts", ["/a", f"/b/{TOKEN}"])
    refuse_secrets({"max_steps": 3, "fp8": True, "time": None})


def test_the_hub_s_token_is_found_in_any_setting() -> None:
    with pytest.raises(InputError, match="--experiment holds the Hugging Face token; it must not come into a file"):
        refuse_secrets({"experiment": "a-hf_short-b"}, "hf_short")


def test_a_proxy_with_a_password_is_a_secret_of_the_environment_whatever_its_name() -> None:
    assert is_secret("https_proxy", "http://user:pass@proxy:3128")
    assert not is_secret("https_proxy", "http://proxy:3128")


def refused(name: str, value: Any) -> str:
    with pytest.raises(InputError) as caught:
        refuse_secrets({name: value})
    return str(caught.value)
