// grpc-js against a router: node client.js ADDRESS PROTOS. One JSON line a case; a line on stdin lets it go on.
// Needs @grpc/grpc-js and @grpc/proto-loader, found by NODE_PATH.
'use strict'
const readline = require('readline')
const grpc = require('@grpc/grpc-js')
const loader = require('@grpc/proto-loader')

const [address, protos] = process.argv.slice(2)
const definition = loader.loadSync('stoker/v1/inference.proto', {
  includeDirs: [protos], keepCase: true, longs: Number, enums: String, defaults: true,
})
const { InferenceService } = grpc.loadPackageDefinition(definition).stoker.v1
const options = { 'grpc.max_receive_message_length': 64 << 20, 'grpc.max_send_message_length': 64 << 20 }
const open = (more = {}) => new InferenceService(address, grpc.credentials.createInsecure(), { ...options, ...more })
const asked = (text, max_tokens, model = 'sim-model') => ({
  generation: { model, text, sampling: { max_tokens, ignore_eos: true } },
})
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()

function must (truth, why) {
  if (!truth) throw new Error(why)
}

function unary (client, request, metadata = new grpc.Metadata(), call = {}) {
  return new Promise((resolve, reject) => {
    client.Generate(request, metadata, call, (error, response) => (error ? reject(error) : resolve(response)))
  })
}

// All of a stream: its text, its tokens, in how many messages. `each` is told how many there are so far.
function whole (call, each = () => {}) {
  return new Promise((resolve, reject) => {
    const seen = { text: '', tokens: 0, messages: 0, finished: null }
    call.on('data', part => {
      seen.messages++
      for (const delta of part.deltas) {
        seen.text += delta.text
        seen.tokens += delta.token_ids.length
      }
      if (part.finished) seen.finished = part.finished
      each(seen)
    })
    call.on('error', reject)
    call.on('end', () => resolve(seen))
  })
}

async function refused (promise, code) {
  const error = await promise.then(() => null, error => error)
  must(error !== null, 'it was served')
  must(error.code === code, `${error.code} ${error.details}`)
  return error
}

const cases = {
  async unary (client) {
    const answer = await unary(client, asked('unary one', 16))
    must(answer.outputs[0].token_ids.length === 16, 'not 16 tokens')
  },
  async stream (client) {
    const once = await unary(client, asked('stream of four hundred', 400))
    const seen = await whole(client.GenerateStream(asked('stream of four hundred', 400)))
    must(seen.text === once.outputs[0].text && seen.tokens === 400, 'not what a unary call gives')
    must(seen.messages > 50, `${seen.messages} messages`)
  },
  async parallel (client) {
    const seen = await Promise.all(Array.from({ length: 200 }, (_, i) => whole(client.GenerateStream(asked(`parallel ${i}`, 50)))))
    must(seen.every(each => each.tokens === 50 && each.finished), 'a stream is not whole')
  },
  async cancel (client) {
    await Promise.all(Array.from({ length: 20 }, async (_, i) => {
      const call = client.GenerateStream(asked(`cancel ${i}`, 100000))
      const error = await whole(call, seen => { if (seen.tokens >= 5) call.cancel() }).catch(error => error)
      must(error.code === grpc.status.CANCELLED, `${error.code} ${error.details}`)
    }))
  },
  async deadline (client) {
    const call = client.GenerateStream(asked('deadline', 100000), { deadline: Date.now() + 300 })
    await refused(whole(call), grpc.status.DEADLINE_EXCEEDED)
  },
  async large (client) {
    const answer = await unary(client, asked(`lorem${' '.repeat(4 << 20)}ipsum`, 3))
    must(answer.started.prompt_token_ids.length > 2e5, 'not a large answer')
  },
  async too_large (client) {
    await refused(unary(client, asked('lorem ipsum '.repeat((17 << 20) / 12), 3)), grpc.status.RESOURCE_EXHAUSTED)
    await cases.unary(client)
  },
  async metadata (client) {
    const metadata = new grpc.Metadata()
    metadata.set('x-large', 'v'.repeat(4000))
    metadata.set('x-large-bin', Buffer.alloc(2000, 7))
    const answer = await unary(client, asked('metadata', 4), metadata)
    must(answer.outputs.length === 1, 'no output')
    const more = new grpc.Metadata()
    more.set('x-larger', 'v'.repeat(20000))
    await refused(unary(client, asked('metadata', 4), more), grpc.status.RESOURCE_EXHAUSTED)
    await cases.unary(client)
  },
  async gzip () {
    const client = open({ 'grpc.default_compression_algorithm': 2 })
    const answer = await unary(client, asked('lorem ipsum '.repeat(50000), 4))
    must(answer.started.prompt_token_ids.length > 1e5, 'not the whole prompt')
    client.close()
  },
  async error (client) {
    const error = await refused(unary(client, asked('error', 4, 'no-such-model')), grpc.status.NOT_FOUND)
    must(error.metadata.get('grpc-status-details-bin').length === 1, 'no details')
  },
}

async function main () {
  const client = open()
  const told = (name, why = '') => console.log(JSON.stringify({ case: name, why }))
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run(client)
      told(name)
    } catch (error) {
      told(name, `${error}`)
    }
  }
  // The server is told to leave while streams run, and comes back.
  try {
    let begun = 0
    const streams = Array.from({ length: 20 }, (_, i) => {
      let first = true
      return whole(client.GenerateStream(asked(`drain ${i}`, 400)), () => {
        if (first && ++begun === 20) console.log(JSON.stringify({ case: 'streams run' }))
        first = false
      })
    })
    const seen = await Promise.all(streams)
    must(seen.every(each => each.tokens === 400 && each.finished), 'a stream is not whole')
    told('drain')
  } catch (error) {
    told('drain', `${error}`)
  }
  await lines.next()
  try {
    await unary(client, asked('restart', 4), new grpc.Metadata({ waitForReady: true }), { deadline: Date.now() + 10000 })
    await cases.parallel(client)
    told('restart')
  } catch (error) {
    told('restart', `${error}`)
  }
  client.close()
  process.exit(0)
}

main()
