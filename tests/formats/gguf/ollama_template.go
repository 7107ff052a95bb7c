// go run ollama_template.go < JOB: what Go's text/template, which Ollama uses, makes of a template and conversations.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

type conversation struct {
	System   string
	Messages []message
}

func main() {
	var job struct {
		Template string
		Cases    []conversation
	}
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
	texts := []string{}
	for _, one := range job.Cases {
		var text bytes.Buffer
		if err := parsed.Execute(&text, map[string]any{"System": one.System, "Messages": one.Messages}); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
