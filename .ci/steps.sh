# What the scripts here share: named steps with their minutes, and interpreters.
steps=() starts=()

step() {
    steps+=("$1") starts+=("$SECONDS")
    printf '\n=== %s (%d s) ===\n' "$1" "$SECONDS"
}

# A table of the steps so far, in the form CONTRIBUTING.md has it.
minutes() {
    printf '\n| step | minutes |\n| --- | ---: |\n'
    for ((i = 0; i + 1 < ${#steps[@]}; i++)); do
        awk -v name="${steps[i]}" -v s=$((starts[i + 1] - starts[i])) 'BEGIN { printf "| %s | %.1f |\n", name, s / 60 }'
    done
    awk -v s="$SECONDS" 'BEGIN { printf "| all | %.1f |\n", s / 60 }'
}

find_python() {
    local candidate
    for candidate in "python$1" $(command -v pyenv >/dev/null && ls -d "$(pyenv root)"/versions/"$1".*/bin/python 2>/dev/null); do
        if "$candidate" -c '' 2>/dev/null; then echo "$candidate"; return; fi
    done
    return 1
}
